#include "model/simulated_engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <sstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

uint64_t HashFloats(absl::Span<const float> values) {
  uint64_t hash = values.size();
  size_t i = 0;
  for (; i + 2 <= values.size(); i += 2) {
    uint64_t pair;
    std::memcpy(&pair, values.data() + i, sizeof(pair));
    hash = Mix(hash, pair);
  }
  if (i < values.size()) {
    uint32_t bits;
    std::memcpy(&bits, values.data() + i, sizeof(bits));
    hash = Mix(hash, bits);
  }
  return hash;
}

// (-10, 0)
float Logprob(uint64_t hash) {
  return -10.0f * (static_cast<float>(hash >> 40) + 0.5f) / static_cast<float>(1 << 24);
}

// Eighths between -4 and 4: exact in every format that contexts travel in.
void FillContext(uint64_t state, absl::Span<float> row) {
  for (size_t i = 0; i < row.size(); i += 8) {
    state = state * 0xd1342543de82ef95u + 0x2545f4914f6cdd1du;
    uint64_t bits = state ^ (state >> 32);
    const size_t count = std::min<size_t>(8, row.size() - i);
    for (size_t j = 0; j < count; ++j, bits >>= 8) {
      row[i + j] = static_cast<float>(static_cast<int>(bits & 63) - 32) / 8.0f;
    }
  }
}

// When the step is done. What the hashes take is part of it.
SimulatedDevice::Time RunStep(const StepTable& table, int64_t rows, SimulatedDevice& device,
                              SimulatedWork& work) {
  const absl::Duration time = table.Time(rows);
  work.steps.fetch_add(1, std::memory_order_relaxed);
  work.rows.fetch_add(rows, std::memory_order_relaxed);
  work.busy_us.fetch_add(absl::ToInt64Microseconds(time), std::memory_order_relaxed);
  return device.Run(std::chrono::steady_clock::now(), time);
}

std::shared_ptr<SimulatedDevice> OrOwn(std::shared_ptr<SimulatedDevice> device) {
  return device != nullptr ? std::move(device) : std::make_shared<SimulatedDevice>();
}

}  // namespace

absl::StatusOr<StepTable> StepTable::Parse(const std::string& text) {
  StepTable table;
  double milliseconds = 0;
  const auto is_time = [](double value) { return value >= 0 && value <= 1e6; };
  if (absl::SimpleAtod(text, &milliseconds)) {
    if (!is_time(milliseconds)) {
      return absl::InvalidArgumentError(
          absl::StrCat(text, " is no time of a step in milliseconds"));
    }
    table.points_.emplace_back(1, milliseconds);
    return table;
  }
  absl::StatusOr<std::string> rows = ReadFile(text);
  if (!rows.ok()) return absl::NotFoundError(absl::StrCat(text, " ", rows.status().message()));
  std::istringstream file(*std::move(rows));
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const absl::string_view content =
        absl::StripAsciiWhitespace(absl::string_view(line).substr(0, line.find('#')));
    if (content.empty()) continue;
    const std::vector<std::string> fields =
        absl::StrSplit(content, absl::ByAnyChar(" \t,"), absl::SkipEmpty());
    int64_t rows = 0;
    if (fields.size() != 2 || !absl::SimpleAtoi(fields[0], &rows) || rows < 1 ||
        !absl::SimpleAtod(fields[1], &milliseconds) || !is_time(milliseconds)) {
      return absl::InvalidArgumentError(
          absl::StrCat(text, ":", number, ": \"", content.substr(0, 40),
                       "\" is not a number of rows and milliseconds"));
    }
    if (!table.points_.empty() && rows <= table.points_.back().first) {
      return absl::InvalidArgumentError(absl::StrCat(text, ":", number, ": rows do not rise"));
    }
    table.points_.emplace_back(rows, milliseconds);
  }
  if (table.points_.empty()) return absl::InvalidArgumentError(absl::StrCat(text, " has no rows"));
  return table;
}

absl::Duration StepTable::Time(int64_t rows) const {
  if (points_.empty()) return absl::ZeroDuration();
  if (points_.size() == 1 || rows <= points_.front().first) {
    return absl::Milliseconds(points_.front().second);
  }
  auto after = std::find_if(points_.begin() + 1, points_.end() - 1,
                            [rows](const auto& point) { return point.first >= rows; });
  const auto& [r1, t1] = *after;
  const auto& [r0, t0] = *(after - 1);
  const double slope = (t1 - t0) / static_cast<double>(r1 - r0);
  return absl::Milliseconds(std::max(0.0, t0 + slope * static_cast<double>(rows - r0)));
}

SimulatedDevice::Time SimulatedDevice::Run(Time begin, absl::Duration time) {
  MutexLock lock(&mutex_);
  free_ = std::max(free_, begin) + absl::ToChronoNanoseconds(time);
  return free_;
}

SimulatedTokenEngine::SimulatedTokenEngine(ModelConfig config, StepTable table, int32_t max_rows,
                                           int32_t in_flight,
                                           std::shared_ptr<SimulatedDevice> device)
    : config_(std::move(config)),
      table_(std::move(table)),
      max_rows_(max_rows),
      in_flight_(in_flight),
      device_(OrOwn(std::move(device))) {}

void SimulatedTokenEngine::Start(absl::Span<const TokenRow> rows,
                                 absl::Span<TokenRowResult> results) {
  ends_.push_back(RunStep(table_, static_cast<int64_t>(rows.size()), *device_, work_));
  for (size_t i = 0; i < rows.size(); ++i) DecodeRow(rows[i], results[i]);
}

void SimulatedTokenEngine::Finish() {
  std::this_thread::sleep_until(ends_.front());
  ends_.pop_front();
}

void SimulatedTokenEngine::DecodeRow(const TokenRow& row, TokenRowResult& result) const {
  result = TokenRowResult();
  const int32_t vocab = row.vocab_limit > 0 ? row.vocab_limit : config_.vocab_size;
  uint64_t hash = HashFloats(row.context);
  const auto report = [&](int32_t token, uint64_t drawn) {
    result.logprobs.push_back(Logprob(Mix(drawn, 1)));
    if (row.top_logprobs == 0) return;
    std::vector<TokenLogprob>& top = result.top.emplace_back();
    for (int32_t k = 0; k < std::min(row.top_logprobs, config_.vocab_size); ++k) {
      top.push_back({(token + k) % config_.vocab_size, -0.5f - static_cast<float>(k)});
    }
  };
  for (const int32_t token : row.forced) {
    hash = Mix(hash, static_cast<uint64_t>(token) + 1);
    if (row.score_forced) report(token, hash);
  }
  const bool greedy = row.sampling->temperature == 0;
  const int32_t wanted = row.limit - static_cast<int32_t>(row.forced.size());
  for (int32_t i = 0; i < wanted && !result.stopped; ++i) {
    const int64_t position = row.position + i;
    uint64_t drawn = hash;
    if (!greedy) {
      drawn = Mix(Mix(Mix(hash, row.seed), row.choice), static_cast<uint64_t>(position));
    }
    const auto stops = [&](int32_t token) {
      return std::find(row.stop_ids.begin(), row.stop_ids.end(), token) != row.stop_ids.end();
    };
    // Neighbours of an id that cannot be drawn yet; a vocabulary of nothing but stop ids gives one.
    auto token = static_cast<int32_t>((drawn >> 16) % static_cast<uint64_t>(vocab));
    for (size_t k = 0;
         k < row.stop_ids.size() && position < row.min_tokens_position && stops(token); ++k) {
      token = (token + 1) % vocab;
    }
    result.tokens.push_back(token);
    report(token, drawn);
    result.stopped = stops(token);
    hash = Mix(hash, static_cast<uint64_t>(token) + 1);
  }
}

SimulatedBlockEngine::SimulatedBlockEngine(ModelConfig config, StepTable table, int32_t in_flight,
                                           std::shared_ptr<SimulatedDevice> device)
    : config_(std::move(config)),
      table_(std::move(table)),
      in_flight_(in_flight),
      device_(OrOwn(std::move(device))) {}

absl::Status SimulatedBlockEngine::AllocateKv(int64_t num_pages, int32_t page_blocks) {
  page_blocks_ = page_blocks;
  kv_.assign(static_cast<size_t>(num_pages) * static_cast<size_t>(page_blocks), 0);
  return absl::OkStatus();
}

void SimulatedBlockEngine::CopyPage(int32_t from, int32_t to, int32_t blocks) {
  for (int32_t i = 0; i < blocks; ++i) Slot(to, i) = Slot(from, i);
}

absl::Status SimulatedBlockEngine::Start(absl::Span<const BlockChunk> chunks,
                                         absl::Span<float> contexts) {
  const auto length = static_cast<size_t>(config_.block_length);
  int64_t blocks = 0;
  for (const BlockChunk& chunk : chunks) {
    blocks += static_cast<int64_t>(chunk.tokens.size() / length);
  }
  ends_.push_back(RunStep(table_, blocks, *device_, work_));
  const auto width = static_cast<size_t>(config_.block.hidden_size);
  size_t out = 0;
  for (const BlockChunk& chunk : chunks) {
    const auto slot = [&](int64_t block) -> uint64_t& {
      return Slot(chunk.pages[static_cast<size_t>(block / page_blocks_)], block % page_blocks_);
    };
    const auto count = static_cast<int64_t>(chunk.tokens.size() / length);
    uint64_t hash = chunk.first_block > 0 ? slot(chunk.first_block - 1) : 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = chunk.first_block + i;
      for (const int32_t token : chunk.tokens.subspan(static_cast<size_t>(i) * length, length)) {
        hash = Mix(hash, static_cast<uint64_t>(token) + 1);
      }
      slot(block) = hash;
      if (block < chunk.first_context) continue;
      FillContext(hash, contexts.subspan(out, width));
      out += width;
    }
  }
  return absl::OkStatus();
}

absl::Status SimulatedBlockEngine::Finish() {
  std::this_thread::sleep_until(ends_.front());
  ends_.pop_front();
  return absl::OkStatus();
}

}  // namespace blockserve
