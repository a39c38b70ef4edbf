// What the tests of fail-over share: a load on a core over simulated tiers, and what must hold of
// its streams once the tiers have failed and come back. Whatever happens, a stream has the tokens
// that it would have had, each once, or ends with the error that says why; and nothing is left
// behind.
#ifndef BLOCKSERVE_GATEWAY_FAILOVER_FIXTURE_H_
#define BLOCKSERVE_GATEWAY_FAILOVER_FIXTURE_H_

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gateway/core_fixture.h"

namespace blockserve {

class FailoverFixture : public CoreFixture {
 protected:
  std::vector<Stream> Load(uint64_t streams, int32_t max_tokens) {
    std::vector<Stream> made;
    for (uint64_t i = 0; i < streams; ++i) {
      GenerationRequest request = Request(3 + static_cast<int32_t>(i % 11), max_tokens, i);
      request.alignment = static_cast<Alignment>(i % 3);
      request.n = i % 5 == 0 ? 3 : 1;
      made.push_back(Generate(std::move(request)));
    }
    return made;
  }
  // Tokens of all choices.
  static size_t Received(const Stream& stream) {
    size_t tokens = 0;
    for (const auto& [choice, received] : stream.sink->tokens) tokens += received.size();
    return tokens;
  }
  // Workers die of the rows of this stream, from its 20th token on; each death is counted.
  void MakeDeadly(uint64_t seed, int& kills) {
    for (const auto& worker : workers_) {
      worker->deadly = [seed, &kills](const v1::TokenRowRequest& row) {
        if (row.seed() != seed || row.position() < 20) return false;
        ++kills;
        return true;
      };
    }
  }
  // The one of this seed has ended INTERNAL, with a message that says `why`.
  void ExpectAllExactBut(uint64_t seed, const std::string& why,
                         const std::vector<Stream>& streams) {
    for (const Stream& stream : streams) {
      if (stream.request.seed == seed) {
        EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
        EXPECT_THAT(stream.sink->status.message(), ::testing::HasSubstr(why));
      } else {
        ExpectExact(stream);
      }
    }
    ExpectNothingLeft();
  }
  void ExpectAllExact(const std::vector<Stream>& streams) {
    for (const Stream& stream : streams) ExpectExact(stream);
    ExpectNothingLeft();
  }
};

// Two gateways over the same workers; one has a request that kills the workers of one tier, the
// other one that is there as often as it can be.
class TwoGateways final : public FailoverFixture {
 public:
  // How the second one's ends.
  absl::Status Innocent(uint64_t number, bool kills_replicas) {
    MakeCore(kills_replicas ? 3 : 1, kills_replicas ? 1 : 4);
    const std::unique_ptr<Core> other = NewCore(/*gateway=*/1);
    TellOfAll(*other);
    Connect();
    const GenerationRequest poison = Request(19, 60, number);
    int kills = 0;
    const auto dies_of = [&](auto& worker, const auto& call) {
      if (call.header().request_key() != poison.request_id) return false;
      ++kills;
      loop_.PostAfter(absl::Milliseconds(50), [&worker] { worker.Restart(); });
      return true;
    };
    if (kills_replicas) {
      for (const auto& replica : blocks_) {
        replica->deadly = [&dies_of, replica = replica.get()](const v1::BlockRequest& call) {
          return !call.has_close() && dies_of(*replica, call);
        };
      }
    } else {
      for (const auto& worker : workers_) {
        worker->deadly = [&dies_of, worker = worker.get()](const v1::TokenRowRequest& row) {
          return row.position() >= 20 && dies_of(*worker, row);
        };
      }
    }
    const Stream deadly = Generate(poison);
    const auto sink = std::make_shared<RecordingSink>();
    other->Generate(Request(19, 60, 1000 + number), sink);
    EXPECT_TRUE(RunUntilDone({deadly}));
    EXPECT_EQ(kills, kills_replicas ? 4 : 3);
    EXPECT_EQ(deadly.sink->status.code(), absl::StatusCode::kInternal);
    EXPECT_TRUE(loop_.RunUntil([&] { return sink->done > 0; }));
    return sink->status;
  }

 private:
  void TestBody() override {}
};
// Of a hundred innocent requests, with a message that says `why`.
inline int InnocentsEnded(bool kills_replicas, const std::string& why) {
  int ended = 0;
  for (uint64_t number = 1; number <= 100; ++number) {
    const absl::Status status = TwoGateways().Innocent(number, kills_replicas);
    if (status.ok()) continue;
    EXPECT_THAT(status.message(), ::testing::HasSubstr(why));
    ++ended;
  }
  return ended;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_FAILOVER_FIXTURE_H_
