// What the engine's thread of a block replica does between steps, and how busy that leaves a
// device: the loop on a simulated engine, and a gateway that answers each row with the next block
// at once. Not a test: it prints a line for each number of steps under way.
//
//   block_loop_cost [SEQUENCES] [MICROSECONDS OF A ROW] [MICROSECONDS OF A STEP] [SECONDS]
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block_service/engine_loop.h"
#include "common/clock.h"
#include "model/simulated_engine.h"

namespace blockserve {
namespace {

constexpr int32_t kBlockLength = 4;
constexpr int32_t kWidth = 768;
constexpr int64_t kPromptBlocks = 8;
constexpr StreamId kStream = 1;
constexpr uint64_t kGateway = 1;

// Appends the next block to each sequence that a row has come for.
class EchoingGateway final : public BlockReplySink {
 public:
  EchoingGateway(BlockMailbox& mailbox, size_t sequences)
      : mailbox_(mailbox), blocks_(sequences, kPromptBlocks) {}

  void OpenAll() {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      AddItem(i).call = OpenCall{std::vector<int32_t>(kPromptBlocks * kBlockLength, id), 1 << 20};
    }
    Post();
  }
  int64_t rows() const { return rows_.load(); }

  void SayHello(const std::string&, const BlockLoadReport&) override {}
  void Add(const BlockItemReply& reply) override {
    if (!reply.status.ok()) {
      std::fprintf(stderr, "%s\n", reply.status.ToString().c_str());
      std::exit(1);
    }
    if (!reply.last) return;
    rows_.fetch_add(1);
    const size_t sequence = reply.id;
    AddItem(sequence).call =
        AppendCall{blocks_[sequence]++, {1, 2, 3, static_cast<int32_t>(sequence)}};
  }
  void Flush(const BlockLoadReport&) override { Post(); }
  void End(const absl::Status&) override {}

 private:
  BlockWorkItem& AddItem(size_t sequence) {
    BlockWorkItem& item = items_.items.emplace_back();
    item.stream = kStream;
    item.id = sequence;
    item.sequence = {kGateway, sequence};
    return item;
  }
  void Post() {
    items_.stream = kStream;
    if (!items_.items.empty()) mailbox_.Post(std::exchange(items_, {}));
  }

  BlockMailbox& mailbox_;
  std::vector<int64_t> blocks_;  // of each sequence
  StreamItems items_;
  std::atomic<int64_t> rows_{0};
};

void Measure(int32_t in_flight, int32_t sequences, const StepTable& table, double seconds) {
  ModelConfig config;
  config.block_length = kBlockLength;
  config.vocab_size = 1 << 20;
  config.block.hidden_size = kWidth;
  SimulatedBlockEngine engine(config, table, in_flight);
  BlockSchedulerOptions options;
  options.block_length = kBlockLength;
  options.vocab_size = config.vocab_size;
  options.context_width = kWidth;
  options.num_pages = int64_t{sequences} * 1024;
  options.max_sequences = sequences;
  if (!engine.AllocateKv(options.num_pages, options.page_blocks).ok()) std::exit(1);
  const SteadyClock clock;
  EngineLoop loop(engine, options, clock);
  const auto gateway =
      std::make_shared<EchoingGateway>(*loop.mailbox(), static_cast<size_t>(sequences));
  loop.Start();
  loop.mailbox()->Post(PartHashKnown{"part"});
  loop.mailbox()->Post(StreamOpened{kStream, kGateway, gateway});
  gateway->OpenAll();
  std::this_thread::sleep_for(std::chrono::seconds(1));
  const int64_t rows = gateway->rows(), busy_us = engine.work().busy_us,
                steps = engine.work().steps;
  const auto begin = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%d under way: %.0f rows/s, %.0f rows a step, engine busy %.1f %%\n", in_flight,
              static_cast<double>(gateway->rows() - rows) / took,
              static_cast<double>(gateway->rows() - rows) /
                  static_cast<double>(engine.work().steps - steps),
              static_cast<double>(engine.work().busy_us - busy_us) / took / 1e4);
  loop.Stop();
}

int Main(int argc, char** argv) {
  const auto argument = [&](int index, double otherwise) {
    return argc > index ? std::atof(argv[index]) : otherwise;
  };
  const auto sequences = static_cast<int32_t>(argument(1, 2048));
  const double row_us = argument(2, 1.2);
  const double step_us = argument(3, 200);
  const double seconds = argument(4, 4);
  if (sequences < 1 || !(seconds > 0) || !(row_us >= 0) || !(step_us >= 0)) {
    std::fprintf(stderr, "block_loop_cost [SEQUENCES] [US OF A ROW] [US OF A STEP] [SECONDS]\n");
    return 2;
  }
  for (const int32_t in_flight : {1, 2}) {
    Measure(in_flight, sequences, StepTable(step_us / 1e3, row_us / 1e3), seconds);
  }
  return 0;
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
