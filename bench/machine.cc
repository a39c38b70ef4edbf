#include "bench/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "bench/peak_kernels.h"
#include "kernels/aligned_buffer.h"

namespace blockserve {
namespace {

constexpr int kTries = 7;
constexpr double kTrySeconds = 0.012;
constexpr int64_t kReadBytes = int64_t{256} << 20;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs body(thread) on `threads` threads of the pool at once and returns the seconds from when all
// of them are there until the last is done.
template <typename Body>
double TimeOnThreads(ThreadPool& pool, int threads, const Body& body) {
  ThreadPool::Turn turn(pool);
  std::atomic<int> there{0};
  std::atomic<double> begin{0};
  pool.ParallelFor(threads, [&](int64_t task, int) {
    // A task waits for the others, so each runs on a thread of its own.
    if (there.fetch_add(1) + 1 == threads) begin.store(Now());
    while (begin.load() == 0) {
    }
    body(static_cast<int>(task));
  });
  return Now() - begin.load();
}

double BestRate(ThreadPool& pool, int threads, const PeakLoop& loop, int64_t rounds) {
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    std::vector<double> operations(static_cast<size_t>(threads));
    const double seconds = TimeOnThreads(pool, threads, [&](int thread) {
      operations[static_cast<size_t>(thread)] = loop.run(rounds);
    });
    best = std::max(best, operations[0] * threads / seconds);
  }
  return best;
}

PeakRate MeasurePeak(ThreadPool& pool, const PeakLoop& loop) {
  PeakRate rate;
  if (loop.run == nullptr) return rate;
  rate.instruction = loop.name;
  // As many rounds as fill a try.
  int64_t rounds = 64;
  double seconds = 0;
  while (true) {
    const double begin = Now();
    loop.run(rounds);
    seconds = Now() - begin;
    if (seconds > kTrySeconds / 4) break;
    rounds *= 2;
  }
  rounds = std::max<int64_t>(1, static_cast<int64_t>(rounds * kTrySeconds / seconds));
  rate.one_core = BestRate(pool, 1, loop, rounds);
  rate.all_cores =
      pool.num_threads() == 1 ? rate.one_core : BestRate(pool, pool.num_threads(), loop, rounds);
  return rate;
}

double BestBandwidth(ThreadPool& pool, int threads, const AlignedBuffer& buffer) {
  const int64_t each = kReadBytes / threads / 256 * 64;        // floats, a multiple of 64
  std::vector<float> sums(static_cast<size_t>(threads) * 64);  // apart, and used
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    const double seconds = TimeOnThreads(pool, threads, [&](int thread) {
      sums[static_cast<size_t>(thread) * 64] += ReadAll(buffer.as<float>() + thread * each, each);
    });
    best = std::max(best, static_cast<double>(each) * 4 * threads / seconds);
  }
  return best;
}

nlohmann::ordered_json PeakJson(const PeakRate& rate) {
  if (rate.instruction.empty()) return nullptr;
  return {{"instruction", rate.instruction},
          {"one_core_gops", rate.one_core / 1e9},
          {"all_cores_gops", rate.all_cores / 1e9}};
}

}  // namespace

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  std::string implementer, part;  // numbers: all that Linux tells of an AArch64 processor
  for (std::string line; std::getline(file, line);) {
    const std::pair<absl::string_view, absl::string_view> field =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    const absl::string_view name = absl::StripAsciiWhitespace(field.first);
    const std::string value(absl::StripAsciiWhitespace(field.second));
    if (name == "model name") return value;
    if (name == "CPU implementer") implementer = value;
    if (name == "CPU part") part = value;
  }
  if (part.empty()) return "unknown";
  return absl::StrCat("AArch64 implementer ", implementer, " part ", part);
}

int NumCores() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

Machine NameMachine(const ThreadPool& pool) {
  Machine machine;
  machine.cpu = CpuName();
  machine.cores = NumCores();
  machine.threads = pool.num_threads();
  return machine;
}

Machine MeasureMachine(ThreadPool& pool, KernelTarget target) {
  Machine machine = NameMachine(pool);
  const PeakLoops loops = FindPeakLoops(target);
  machine.fma_f32 = MeasurePeak(pool, loops.fma_f32);
  machine.bf16_dot = MeasurePeak(pool, loops.bf16_dot);
  machine.int8_dot = MeasurePeak(pool, loops.int8_dot);

  const AlignedBuffer buffer(kReadBytes);
  if (buffer.data() != nullptr) {
    // Pages that were never written are all one page of zeros.
    std::fill(buffer.as<float>(), buffer.as<float>() + kReadBytes / 4, 1.0f);
    machine.read_bytes_per_s_one_core = BestBandwidth(pool, 1, buffer);
    machine.read_bytes_per_s = BestBandwidth(pool, pool.num_threads(), buffer);
  }
  return machine;
}

void Machine::TakeBetter(const Machine& other) {
  const auto take = [](double& rate, double other_rate) { rate = std::max(rate, other_rate); };
  take(fma_f32.one_core, other.fma_f32.one_core);
  take(fma_f32.all_cores, other.fma_f32.all_cores);
  take(bf16_dot.one_core, other.bf16_dot.one_core);
  take(bf16_dot.all_cores, other.bf16_dot.all_cores);
  take(int8_dot.one_core, other.int8_dot.one_core);
  take(int8_dot.all_cores, other.int8_dot.all_cores);
  take(read_bytes_per_s_one_core, other.read_bytes_per_s_one_core);
  take(read_bytes_per_s, other.read_bytes_per_s);
}

nlohmann::ordered_json Machine::Json() const {
  nlohmann::ordered_json json = {{"cpu", cpu}, {"cores", cores}, {"threads", threads}};
  if (!device.empty()) {
    json["device"] = {{"name", device},
                      {"libraries", device_libraries},
                      {"product", device_product.instruction},
                      {"product_gflop_per_s", device_product.all_cores / 1e9},
                      {"gb_per_s", device_bytes_per_s / 1e9}};
    return json;
  }
  json["fma_f32"] = PeakJson(fma_f32);
  json["bf16_dot"] = PeakJson(bf16_dot);
  json["int8_dot"] = PeakJson(int8_dot);
  json["read_gb_per_s_one_core"] = read_bytes_per_s_one_core / 1e9;
  json["read_gb_per_s"] = read_bytes_per_s / 1e9;
  return json;
}

}  // namespace blockserve
