// Streams that go on and calls that are made again, against gateways that break off where they are
// told to.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "client/gateways.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;

constexpr int kTokens = 12;
constexpr int kAll = 100;

// What becomes of the calls, whichever gateways they come to: of each after how many blocks it
// breaks off, or below zero the status that it is refused with.
using Plan = std::deque<int>;

// Writes the tokens 100 … 111 by three, or what is left of them.
class Gateway final : public v1::Generation::Service {
 public:
  explicit Gateway(Plan plan) : Gateway(std::make_shared<Plan>(std::move(plan))) {}
  explicit Gateway(std::shared_ptr<Plan> plan) : plan_(std::move(plan)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Gateway() override { server_->Shutdown(); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    requests.push_back(*request);
    const auto key = context->client_metadata().find("authorization");
    keys.push_back(key == context->client_metadata().end()
                       ? ""
                       : std::string(key->second.data(), key->second.size()));
    int blocks = Next();
    if (blocks < 0) return Refuse(context, blocks);
    v1::GenerateResponse event;
    event.mutable_started()->set_seed(5);
    event.mutable_started()->set_model_id("m");
    writer->Write(event);
    int at = request->has_resume() ? request->resume().choices(0).tokens_size() : 0;
    while (at < kTokens) {
      if (blocks-- == 0) return End(context, breaks_off_with, "lost");
      v1::Output& output = *event.mutable_output();
      output.Clear();
      for (int i = 0; i < 3; ++i) output.add_tokens(100 + at++);
      writer->Write(event);
    }
    event.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
    writer->Write(event);
    event.mutable_usage()->set_completion_tokens(kTokens);
    writer->Write(event);
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    const int verdict = Next();
    if (verdict < 0) return Refuse(context, verdict);
    response->set_name("demo");
    return grpc::Status::OK;
  }

  std::vector<v1::GenerateRequest> requests;
  std::vector<std::string> keys;
  int calls = 0;
  std::string retry_after;  // told with every refusal, unless empty
  grpc::StatusCode breaks_off_with = grpc::StatusCode::UNAVAILABLE;
  bool behind_a_proxy = false;  // which makes an INTERNAL of its own of what breaks

 private:
  grpc::Status Refuse(grpc::ServerContext* context, int verdict) const {
    if (!retry_after.empty()) context->AddTrailingMetadata("retry-after", retry_after);
    return End(context, static_cast<grpc::StatusCode>(-verdict), "not now");
  }
  grpc::Status End(grpc::ServerContext* context, grpc::StatusCode code,
                   const std::string& why) const {
    if (code == grpc::StatusCode::INTERNAL && !behind_a_proxy) {
      context->AddTrailingMetadata("blockserve-status", "INTERNAL");
    }
    return {code, why};
  }
  int Next() {
    ++calls;
    if (plan_->empty()) return -grpc::StatusCode::INTERNAL;
    const int next = plan_->front();
    plan_->pop_front();
    return next;
  }
  const std::shared_ptr<Plan> plan_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

std::unique_ptr<Client> Connect(const std::vector<const Gateway*>& gateways,
                                std::optional<int> retries = std::nullopt) {
  ClientOptions options;
  for (const Gateway* gateway : gateways) options.addresses.push_back(gateway->address());
  options.api_key = "bsk_1\n";
  options.max_retries = retries;
  options.first_backoff = absl::Milliseconds(1);
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Create(options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

struct Result {
  std::vector<int> tokens;
  int started = 0, finished = 0, usage = 0;
  int resumes = 0;
  absl::Status status;
};

Result Read(Client& client) {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(1);
  const std::unique_ptr<GenerationStream> stream = client.Generate(request);
  Result result;
  v1::GenerateResponse event;
  while (stream->Next(&event)) {
    result.started += event.has_started();
    result.finished += event.has_finished();
    result.usage += event.has_usage();
    for (const int token : event.output().tokens()) result.tokens.push_back(token);
  }
  result.resumes = stream->resumes();
  result.status = stream->Finish();
  return result;
}

const auto kEveryToken = ElementsAre(100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111);

TEST(ClientResume, ABrokenStreamGoesOnElsewhereAsIfNothingHadBeen) {
  const auto plan = std::make_shared<Plan>(Plan{2, 0, 1, kAll});
  std::vector<std::unique_ptr<Gateway>> gateways;
  for (int i = 0; i < 3; ++i) gateways.push_back(std::make_unique<Gateway>(plan));
  const auto client = Connect({gateways[0].get(), gateways[1].get(), gateways[2].get()});
  const Result result = Read(*client);
  // Begins anywhere, and goes round.
  size_t begin = 0;
  while (gateways[begin]->requests.size() != 2) ASSERT_LT(++begin, 3u);
  const Gateway& first = *gateways[begin];
  const Gateway& second = *gateways[(begin + 1) % 3];
  const Gateway& third = *gateways[(begin + 2) % 3];
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_THAT(result.tokens, kEveryToken);
  EXPECT_EQ(result.started, 1);
  EXPECT_EQ(result.finished, 1);
  EXPECT_EQ(result.usage, 1);
  EXPECT_EQ(result.resumes, 3);
  EXPECT_FALSE(first.requests[0].has_resume());
  EXPECT_EQ(second.requests[0].resume().started().seed(), 5u);
  EXPECT_EQ(second.requests[0].resume().choices(0).tokens_size(), 6);
  EXPECT_EQ(third.requests[0].resume().choices(0).tokens_size(), 6);
  EXPECT_EQ(first.requests[1].resume().choices(0).tokens_size(), 9);
  EXPECT_THAT(first.keys, ElementsAre("Bearer bsk_1", "Bearer bsk_1"));
}

// Breaks off each stream after what the call before has told it to write.
class TwoChoices final : public v1::Generation::Service {
 public:
  TwoChoices() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~TwoChoices() override { server_->Shutdown(); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    requests.push_back(*request);
    v1::GenerateResponse event;
    event.mutable_started()->set_seed(5);
    writer->Write(event);
    v1::Output& output = *event.mutable_output();
    switch (requests.size()) {
      case 1:
        output.set_choice(1);
        output.add_tokens(7);
        writer->Write(event);
        output.set_choice(0);
        output.set_tokens(0, 8);
        writer->Write(event);
        output.set_choice(9);  // of no choice that was asked for
        writer->Write(event);
        event.mutable_finished()->set_choice(1);
        writer->Write(event);
        return {grpc::StatusCode::UNAVAILABLE, "lost"};
      case 2:
        output.add_tokens(9);
        writer->Write(event);
        return {grpc::StatusCode::UNAVAILABLE, "lost"};
      default:
        event.mutable_finished()->set_choice(0);
        writer->Write(event);
        event.mutable_usage();
        writer->Write(event);
        return grpc::Status::OK;
    }
  }

  std::vector<v1::GenerateRequest> requests;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST(ClientResume, TellsOfEachChoiceWhatHasComeAndWhetherItIsOver) {
  // Also where it goes on with what another process has received.
  for (const bool had_some : {false, true}) {
    TwoChoices gateway;
    ClientOptions options;
    options.addresses = {gateway.address()};
    options.first_backoff = absl::Milliseconds(1);
    const auto client = Client::Create(options).value();
    v1::GenerateRequest request;
    request.set_n(2);
    if (had_some) {
      v1::Resume& had = *request.mutable_resume();
      had.mutable_started()->set_seed(5);
      had.add_choices()->add_tokens(3);
      had.add_choices();
    }
    int outputs = 0;
    const absl::Status status = client->Generate(request, [&](const v1::GenerateResponse& event) {
      outputs += event.has_output();
      return true;
    });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(outputs, 4);
    ASSERT_EQ(gateway.requests.size(), 3u);
    const v1::Resume& second = gateway.requests[1].resume();
    ASSERT_EQ(second.choices_size(), 2);
    EXPECT_THAT(second.choices(1).tokens(), ElementsAre(7));
    EXPECT_TRUE(second.choices(1).finished());
    EXPECT_FALSE(second.choices(0).finished());
    const v1::Resume& third = gateway.requests[2].resume();
    ASSERT_EQ(third.choices_size(), 2);
    if (had_some) {
      EXPECT_THAT(third.choices(0).tokens(), ElementsAre(3, 8, 9));
    } else {
      EXPECT_THAT(third.choices(0).tokens(), ElementsAre(8, 9));
    }
    EXPECT_THAT(third.choices(1).tokens(), ElementsAre(7));
    EXPECT_EQ(third.started().seed(), 5u);
  }
}

TEST(ClientResume, ClientsAreSpreadOverTheGateways) {
  Gateway first(Plan(64, 0)), second(Plan(64, 0));
  for (int i = 0; i < 64; ++i) EXPECT_TRUE(Connect({&first, &second})->GetModel().ok());
  // Each with the same chance: all go to one in one run of 2^63.
  EXPECT_GT(first.calls, 0);
  EXPECT_GT(second.calls, 0);
}

TEST(ClientResume, AGatewayThatRefusesIsNotWaitedForWhileThereAreOthers) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::UNAVAILABLE}) {
    const auto plan = std::make_shared<Plan>(Plan{-code, -code, kAll});
    Gateway first(plan), second(plan), third(plan);
    for (Gateway* gateway : {&first, &second, &third}) gateway->retry_after = "86400";
    EXPECT_THAT(Read(*Connect({&first, &second, &third})).tokens, kEveryToken);
    EXPECT_EQ(first.calls, 1);
    EXPECT_EQ(second.calls, 1);
    EXPECT_EQ(third.calls, 1);
  }
}

TEST(ClientResume, CallsThatFindNoRoomAreMadeAgain) {
  Gateway gateway({-grpc::StatusCode::RESOURCE_EXHAUSTED, -grpc::StatusCode::UNAVAILABLE, kAll,
                   -grpc::StatusCode::UNAVAILABLE, 0});
  gateway.retry_after = "0";
  const auto client = Connect({&gateway});
  const Result result = Read(*client);
  EXPECT_THAT(result.tokens, kEveryToken);
  EXPECT_EQ(result.resumes, 0);
  EXPECT_EQ(client->GetModel()->name(), "demo");
}

TEST(ClientResume, TriesEndUnlessThereIsProgress) {
  Gateway dead({-grpc::StatusCode::UNAVAILABLE, -grpc::StatusCode::UNAVAILABLE,
                -grpc::StatusCode::UNAVAILABLE, kAll});
  EXPECT_EQ(Read(*Connect({&dead}, 2)).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(dead.requests.size(), 3u);
  Gateway limping({1, 1, 1, kAll});
  const Result result = Read(*Connect({&limping}, 1));
  EXPECT_THAT(result.tokens, kEveryToken);
  EXPECT_EQ(result.resumes, 3);
}

TEST(ClientResume, ALostGatewayIsTriedForLongerThanOneThatRefuses) {
  Gateway lost({1, -grpc::StatusCode::UNAVAILABLE, -grpc::StatusCode::UNAVAILABLE,
                -grpc::StatusCode::UNAVAILABLE, -grpc::StatusCode::UNAVAILABLE,
                -grpc::StatusCode::UNAVAILABLE, -grpc::StatusCode::UNAVAILABLE,
                -grpc::StatusCode::UNAVAILABLE, kAll});
  EXPECT_THAT(Read(*Connect({&lost})).tokens, kEveryToken);
  Gateway full(Plan(9, -grpc::StatusCode::RESOURCE_EXHAUSTED));
  full.retry_after = "0";
  EXPECT_EQ(Read(*Connect({&full})).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(full.requests.size(), 6u);
}

std::shared_ptr<internal::Gateways> Lost(int addresses, absl::Duration longest_loss) {
  internal::RetryPolicy policy;
  policy.max_retries = std::nullopt;
  policy.first_backoff = absl::Milliseconds(1);
  policy.longest_loss = longest_loss;
  std::vector<std::shared_ptr<grpc::Channel>> channels(
      addresses, grpc::CreateChannel("x:1", grpc::InsecureChannelCredentials()));
  return std::make_shared<internal::Gateways>(std::move(channels), "", policy);
}

TEST(ClientResume, AddressesWhereNobodyEverAnsweredAreGivenUpSoon) {
  for (const int addresses : {1, 3}) {
    internal::RetryState retry(Lost(addresses, absl::InfiniteDuration()), absl::InfiniteFuture());
    int tries = 1;
    absl::Status lost = absl::UnavailableError("lost");
    while (retry.AfterFailure(lost)) ++tries;
    EXPECT_EQ(lost.message(), "lost");
    EXPECT_EQ(tries, 5 + addresses);
  }
}

// It is known to be there from its first word on, not from its first token.
TEST(ClientResume, AGatewayThatHasTakenARequestInIsTriedForLonger) {
  internal::RetryState retry(Lost(1, absl::InfiniteDuration()), absl::InfiniteFuture());
  retry.TakenIn();
  for (int tries = 0; tries < 8; ++tries) {
    absl::Status lost = absl::UnavailableError("lost");
    ASSERT_TRUE(retry.AfterFailure(lost)) << tries;
  }
}

TEST(ClientResume, ACancelEndsAWait) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 16), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  internal::RetryState retry(
      std::make_shared<internal::Gateways>(
          std::vector{grpc::CreateChannel(absl::StrCat("127.0.0.1:", ntohs(address.sin_port)),
                                          grpc::InsecureChannelCredentials())},
          "", internal::RetryPolicy{.max_retries = 1}),
      absl::InfiniteFuture());
  absl::Status full = absl::ResourceExhaustedError("full");
  full.SetPayload("blockserve.v1/retry-after-seconds", absl::Cord("86400"));
  ASSERT_EQ(RetryAfterOf(full), absl::Hours(24));
  std::thread waiting([&] {
    EXPECT_FALSE(retry.AfterFailure(full));
    EXPECT_EQ(full.code(), absl::StatusCode::kCancelled);
  });
  // Whoever waits connects meanwhile.
  const int connection = accept(listener, nullptr, nullptr);
  EXPECT_GE(connection, 0);
  retry.Cancel();
  waiting.join();
  close(connection);
  close(listener);
}

TEST(ClientResume, ALossHasAnEnd) {
  const auto gateways = Lost(1, absl::Milliseconds(40));
  gateways->set_answered();
  internal::RetryState retry(gateways, absl::InfiniteFuture());
  const absl::Time before = absl::Now();
  int tries = 1;
  absl::Status lost = absl::UnavailableError("lost");
  while (retry.AfterFailure(lost)) ++tries;
  EXPECT_EQ(lost.message(), "lost");
  // Pauses of half of 1, 2, 4 … 32 ms at least: the seventh passes the end.
  EXPECT_GT(tries, 1);
  EXPECT_LE(tries, 7);
  EXPECT_GE(absl::Now() - before, absl::Milliseconds(3));
}

TEST(ClientResume, TheTimeThatTheGatewayTellsIsWaitedFor) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::UNAVAILABLE}) {
    Gateway gateway({-code, kAll, -code, kAll});
    gateway.retry_after = "1";
    const auto client = Connect({&gateway});
    absl::Time before = absl::Now();
    EXPECT_THAT(Read(*client).tokens, kEveryToken);
    EXPECT_GE(absl::Now() - before, absl::Seconds(1));
    before = absl::Now();
    EXPECT_TRUE(client->GetModel().ok());
    EXPECT_GE(absl::Now() - before, absl::Seconds(1));
  }
}

TEST(ClientResume, ATimeToComeAgainBeyondTheDeadlineEndsTheCall) {
  Gateway gateway({-grpc::StatusCode::RESOURCE_EXHAUSTED, -grpc::StatusCode::UNAVAILABLE});
  gateway.retry_after = "60";
  const auto client = Connect({&gateway});
  CallOptions options;
  options.timeout = absl::Seconds(30);
  const absl::Time before = absl::Now();
  const absl::Status full = client->GetModel(options).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfterOf(full), absl::Seconds(60));
  v1::GenerateRequest request;
  const absl::Status gone = client->Generate(
      request, [](const v1::GenerateResponse&) { return true; }, options);
  EXPECT_EQ(gone.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(RetryAfterOf(gone), absl::Seconds(60));
  EXPECT_LT(absl::Now() - before, absl::Seconds(30));
  EXPECT_EQ(RetryAfterOf(absl::UnavailableError("x")), std::nullopt);
}

TEST(ClientResume, WhatIsFinalIsNotTriedAgain) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::INTERNAL, grpc::StatusCode::INVALID_ARGUMENT,
        grpc::StatusCode::FAILED_PRECONDITION, grpc::StatusCode::UNAUTHENTICATED}) {
    Gateway gateway({-code, kAll});
    gateway.retry_after = "1";
    EXPECT_EQ(static_cast<int>(Read(*Connect({&gateway})).status.code()), static_cast<int>(code));
    EXPECT_EQ(gateway.requests.size(), 1u);
  }
}

TEST(ClientResume, WhatIsLargerThanIsEverAllowedIsNotTriedAgain) {
  Gateway gateway({-grpc::StatusCode::RESOURCE_EXHAUSTED, kAll});
  EXPECT_EQ(Read(*Connect({&gateway})).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(gateway.requests.size(), 1u);
}

// As gRPC's servers break off calls when the memory of their connections is at its limit.
TEST(ClientResume, AStreamThatIsBrokenOffForWantOfMemoryGoesOn) {
  Gateway gateway(Plan{0, 2, kAll});
  gateway.breaks_off_with = grpc::StatusCode::RESOURCE_EXHAUSTED;
  const Result result = Read(*Connect({&gateway}));
  EXPECT_THAT(result.tokens, kEveryToken);
  EXPECT_EQ(result.resumes, 2);
  // What it has received makes the request larger.
  Gateway small(Plan{2, -grpc::StatusCode::RESOURCE_EXHAUSTED, kAll});
  small.breaks_off_with = grpc::StatusCode::RESOURCE_EXHAUSTED;
  EXPECT_EQ(Read(*Connect({&small})).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(small.requests.size(), 2u);
}

// nginx and others reset the stream, or end it without a status, when the gateway behind them dies.
TEST(ClientResume, AStreamThatAProxyBreaksOffGoesOn) {
  for (const grpc::StatusCode code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNKNOWN}) {
    Gateway gateway(Plan{2, 1, kAll});
    gateway.behind_a_proxy = true;
    gateway.breaks_off_with = code;
    const Result result = Read(*Connect({&gateway}));
    EXPECT_THAT(result.tokens, kEveryToken);
    EXPECT_EQ(result.resumes, 2);
  }
  // Without progress it may be a request that kills workers.
  Gateway gateway(Plan{2, 0, 0, kAll});
  gateway.behind_a_proxy = true;
  gateway.breaks_off_with = grpc::StatusCode::INTERNAL;
  EXPECT_EQ(Read(*Connect({&gateway})).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(gateway.requests.size(), 2u);
  // A gateway's own is final.
  Gateway own(Plan{2, kAll});
  own.breaks_off_with = grpc::StatusCode::INTERNAL;
  EXPECT_EQ(Read(*Connect({&own})).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(own.requests.size(), 1u);
}

TEST(ClientResume, OptionsAreChecked) {
  EXPECT_EQ(Client::Create({}).status(), absl::InvalidArgumentError("addresses is empty"));
  ClientOptions options;
  options.addresses = {"x:1"};
  options.ca_pem = "x";
  EXPECT_EQ(Client::Create(options).status(),
            absl::InvalidArgumentError("ca_pem and certificate_pem need tls"));
  options.ca_pem = "";
  options.tls = true;
  options.key_pem = "x";
  EXPECT_EQ(Client::Create(options).status(),
            absl::InvalidArgumentError("certificate_pem and key_pem go together"));
  options.certificate_pem = "x";
  EXPECT_TRUE(Client::Create(options).ok());
  options.tls = false;
  EXPECT_EQ(Client::Create(options).status(),
            absl::InvalidArgumentError("ca_pem and certificate_pem need tls"));
  options.certificate_pem = options.key_pem = "";
  options.max_retries = -1;
  EXPECT_EQ(Client::Create(options).status(),
            absl::InvalidArgumentError("max_retries is negative"));
  options.max_retries = 0;
  options.first_backoff = -absl::Nanoseconds(1);
  EXPECT_EQ(Client::Create(options).status(),
            absl::InvalidArgumentError("first_backoff is negative"));
  options.first_backoff = absl::ZeroDuration();
  options.addresses = {"x:1", ""};
  EXPECT_EQ(Client::Create(options).status(),
            absl::InvalidArgumentError("addresses has an empty one"));
  options.addresses = {"x:1"};
  for (const char* key : {"bsk 1", "bsk\n1", "bsk\x01", "bsk\xc3\xa9"}) {
    options.api_key = key;
    EXPECT_EQ(Client::Create(options).status(),
              absl::InvalidArgumentError("api_key has characters that no key has"));
  }
}

}  // namespace
}  // namespace blockserve
