// Where the time of the engines' steps goes: for benchmarks.
//
// A running clock: each lap books what has passed since the one before to a part of the step and a
// kind of work. A lap is one look at the clock; without a timer it is a test of a null pointer.
#ifndef BLOCKSERVE_MODEL_STEP_TIMER_H_
#define BLOCKSERVE_MODEL_STEP_TIMER_H_

#include <array>
#include <chrono>
#include <cstdint>

namespace blockserve {

// Used by the thread that runs the engine, under the pool's turn; engines that share a pool may
// share it.
class StepTimer {
 public:
  enum Part {
    kBlockStep,   // embedder and block decoder
    kExpansion,   // context rows to prefix vectors
    kFirstStep,   // token decoder: the first pass of a block
    kLaterSteps,  // token decoder: one position a step
    kNumParts
  };
  enum Work {
    kMatmul,     // matrix products of the stacks and the expansion, with what is fused into them
    kAttention,  // attention over the cache
    kRows,       // norms, rotary, storing keys and values, embeddings, copies
    kHead,       // the products with the output head, and what is taken of each segment of logits
    kSampling,   // drawing, log-probabilities
    kNumWorks
  };

  // The clock starts: what has passed before is nobody's.
  void Begin(Part part) {
    part_ = part;
    last_ = Clock::now();
  }
  void SetPart(Part part) { part_ = part; }
  void Lap(Work work) {
    const Clock::time_point now = Clock::now();
    Book(part_, work, std::chrono::duration<double>(now - last_).count());
    last_ = now;
  }
  // A lap that was timed elsewhere.
  void Book(Part part, Work work, double seconds) {
    seconds_[part][work] += seconds;
    ++laps_[part][work];
  }

  // Engines on a device tell times only while this is on: the device's own, kernel by kernel, which
  // a profiled step takes longer for. Those on the CPU always tell.
  void SetProfiling(bool on) { profiling_ = on; }
  bool profiling() const { return profiling_; }

  // As if this part had been run `factor` times.
  void Scale(Part part, double factor) {
    for (double& seconds : seconds_[part]) seconds *= factor;
  }

  double seconds(Part part, Work work) const { return seconds_[part][work]; }
  // What was booked, whatever it took: some devices have no time.
  int64_t laps(Part part, Work work) const { return laps_[part][work]; }
  void Reset() {
    seconds_ = {};
    laps_ = {};
  }

 private:
  using Clock = std::chrono::steady_clock;

  Part part_ = kBlockStep;
  bool profiling_ = false;
  Clock::time_point last_;
  std::array<std::array<double, kNumWorks>, kNumParts> seconds_ = {};
  std::array<std::array<int64_t, kNumWorks>, kNumParts> laps_ = {};
};

inline void Lap(StepTimer* timer, StepTimer::Work work) {
  if (timer != nullptr) timer->Lap(work);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_STEP_TIMER_H_
