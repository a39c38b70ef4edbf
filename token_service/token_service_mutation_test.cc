// What a broken or hostile gateway may send: bytes and fields changed at random. The process lives,
// no stream hangs, and a well-formed stream beside it gets the same bytes as before.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/logging.h"
#include "model/checkpoint.h"
#include "rpc/mutation_for_test.h"
#include "rpc/server.h"
#include "token_service/token_client_for_test.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr char kMethod[] = "/blockserve.v1.TokenDecoder/Run";

v1::TokenRequestBatch WellFormed(const ModelConfig& config, uint64_t first_id) {
  v1::TokenRequestBatch batch;
  for (uint64_t i = 0; i < 4; ++i) {
    std::vector<float> context(config.block.hidden_size);
    for (size_t k = 0; k < context.size(); ++k) {
      context[k] = static_cast<float>((k * 7 + i * 3) % 11) / 4 - 1;
    }
    v1::TokenRowRequest& row = AddRow(batch, first_id + i, context, config.block_length);
    row.mutable_header()->set_priority(1 + i % 3);
    row.mutable_header()->set_request_key("key");
    row.add_forced(static_cast<int32_t>(i));
    row.set_forced_in_prompt(1);
    row.set_position(static_cast<int64_t>(10 * i));
    row.set_seed(i);
    row.mutable_sampling()->set_temperature(0.8f);
    row.mutable_sampling()->set_top_k(50);
    row.mutable_sampling()->set_repetition_penalty(1.1f);
    v1::LogitBias& bias = *row.mutable_sampling()->add_logit_bias();
    bias.set_token(3);
    bias.set_bias(1.5f);
    row.add_stop_ids(0);
    row.set_top_logprobs(2);
    for (const int32_t count : {5, 1, 1}) row.add_counts(count);
  }
  return batch;
}

TEST(TokenServiceMutation, LivesThroughDamagedStreams) {
  ASSERT_TRUE(ConfigureLogging({.program = "", .level = "error"}).ok());
  auto checkpoint = Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& config = (*checkpoint)->config();
  ThreadPool pool(1);
  auto service = TokenService::Create({}, **checkpoint, &pool);
  ASSERT_TRUE(service.ok()) << service.status();
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {(*service)->service()});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::shared_ptr<grpc::Channel> channel = MakeTierChannel((*server)->address());
  {
    TokenClient client(channel);
    ASSERT_TRUE(client.Hello().has_value());
    const auto answers = [&] {
      client.Forget();
      client.Send(WellFormed(config, 1));
      std::string bytes;
      for (const auto& [id, row] : client.WaitForRows(4)) {
        EXPECT_EQ(row.status().code(), 0);
        bytes += row.SerializeAsString();
      }
      return bytes;
    };
    const std::string expected = answers();
    ASSERT_FALSE(expected.empty());
    for (uint32_t seed = 0; seed < 300; ++seed) {
      Mutator mutator(seed);
      std::vector<std::string> messages;
      v1::TokenRequestBatch hello = HelloMessage();
      if (mutator.Below(4) == 0) mutator.MutateField(hello);
      messages.push_back(hello.SerializeAsString());
      if (mutator.Below(8) == 0) mutator.MutateBytes(messages.back());
      for (uint32_t count = 1 + mutator.Below(6); count > 0; --count) {
        if (mutator.Below(6) == 0) {
          messages.push_back(mutator.Bytes(300));
          continue;
        }
        v1::TokenRequestBatch batch = WellFormed(config, count * 10);
        for (uint32_t times = mutator.Below(6); times > 0; --times) mutator.MutateField(batch);
        messages.push_back(batch.SerializeAsString());
        if (mutator.Below(4) == 0) mutator.MutateBytes(messages.back());
      }
      const grpc::Status status = SendBytes(channel, kMethod, messages);
      ASSERT_NE(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << "seed " << seed;
      ASSERT_NE(status.error_code(), grpc::StatusCode::UNAVAILABLE) << "seed " << seed;
      ASSERT_EQ(answers(), expected) << "seed " << seed;
    }
    EXPECT_EQ(client.faults(), 0);
  }
  (*service)->Stop();
  (*server)->Shutdown(absl::ZeroDuration());
  EXPECT_EQ((*service)->stats().streams, 0);
  EXPECT_EQ((*service)->stats().waiting, 0);
}

}  // namespace
}  // namespace blockserve
