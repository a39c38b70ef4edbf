#include "bench/load_arrivals.h"

#include <cmath>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "bench/load_lengths.h"
#include "bench/load_random.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

constexpr double kMicros = 1e6;
// Ten years, in seconds.
constexpr double kLongest = 3e8;

class PoissonArrivals final : public ArrivalProcess {
 public:
  PoissonArrivals(double rate, uint64_t seed) : rate_(rate), random_(seed, /*stream=*/0x617272) {}
  std::optional<int64_t> Next() override {
    now_ += random_.Exponential() / rate_;
    return std::llround(now_ * kMicros);
  }

 private:
  const double rate_;
  LoadRandom random_;
  double now_ = 0;
};

// Bursts of one are a constant rate.
class BurstArrivals final : public ArrivalProcess {
 public:
  BurstArrivals(double rate, int64_t burst) : rate_(rate), burst_(burst) {}
  std::optional<int64_t> Next() override {
    const int64_t first = count_++ / burst_ * burst_;
    return std::llround(static_cast<double>(first) / rate_ * kMicros);
  }

 private:
  const double rate_;
  const int64_t burst_;
  int64_t count_ = 0;
};

class TraceArrivals final : public ArrivalProcess {
 public:
  explicit TraceArrivals(const std::vector<TraceRow>& rows) : rows_(rows) {}
  std::optional<int64_t> Next() override {
    if (next_ >= rows_.size()) return std::nullopt;
    return std::llround(rows_[next_++].arrival_s * kMicros);
  }

 private:
  const std::vector<TraceRow>& rows_;
  size_t next_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<TraceRow>> ReadTrace(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return absl::NotFoundError(absl::StrCat(path, " ", text.status().message()));
  std::istringstream file(*std::move(text));
  std::vector<TraceRow> rows;
  std::string line;
  bool names_allowed = true;
  for (int number = 1; std::getline(file, line); ++number) {
    const absl::string_view stripped = absl::StripAsciiWhitespace(line);
    if (stripped.empty() || stripped[0] == '#') continue;
    const auto bad = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", why));
    };
    std::vector<std::string> fields = absl::StrSplit(stripped, ',');
    for (std::string& field : fields) absl::StripAsciiWhitespace(&field);
    TraceRow row;
    const bool numeric = absl::SimpleAtod(fields[0], &row.arrival_s);
    if (!numeric && names_allowed) {
      names_allowed = false;
      continue;
    }
    names_allowed = false;
    if (!numeric || !(row.arrival_s >= 0) || row.arrival_s > kLongest) {
      return bad(absl::StrCat("\"", fields[0].substr(0, 40), "\" is no time in seconds"));
    }
    if (fields.size() > 3) return bad("more than three fields");
    int64_t* const lengths[] = {&row.prompt_tokens, &row.output_tokens};
    for (size_t i = 1; i < fields.size(); ++i) {
      if (fields[i].empty()) continue;
      if (!absl::SimpleAtoi(fields[i], lengths[i - 1]) || *lengths[i - 1] < 1 ||
          *lengths[i - 1] > kMostTokens) {
        return bad(absl::StrCat("\"", fields[i].substr(0, 40), "\" is no number of tokens"));
      }
    }
    if (!rows.empty() && row.arrival_s < rows.back().arrival_s) return bad("goes back in time");
    rows.push_back(row);
  }
  if (rows.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no arrivals"));
  const double first = rows.front().arrival_s;
  for (TraceRow& row : rows) row.arrival_s -= first;
  return rows;
}

absl::StatusOr<std::unique_ptr<ArrivalProcess>> MakeArrivals(absl::string_view kind, double rate,
                                                             uint64_t seed) {
  if (!(rate > 0) || rate > 1e7) {
    return absl::InvalidArgumentError(absl::StrCat(rate, " is no rate above 0 per second"));
  }
  if (kind == "poisson") return std::make_unique<PoissonArrivals>(rate, seed);
  if (kind == "constant") return std::make_unique<BurstArrivals>(rate, 1);
  int64_t burst = 0;
  if (absl::ConsumePrefix(&kind, "burst:") && absl::SimpleAtoi(kind, &burst) && burst >= 1) {
    return std::make_unique<BurstArrivals>(rate, burst);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", kind, "\" is not one of poisson, constant and burst:N"));
}

std::unique_ptr<ArrivalProcess> MakeTraceArrivals(const std::vector<TraceRow>& rows) {
  return std::make_unique<TraceArrivals>(rows);
}

}  // namespace blockserve
