// Tests: the two ends of the HTTP front, a connection and a core, played by the test.
#ifndef BLOCKSERVE_GATEWAY_HTTP_FRONT_FIXTURE_H_
#define BLOCKSERVE_GATEWAY_HTTP_FRONT_FIXTURE_H_

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gateway/generation.h"
#include "rpc/http/exchange.h"
#include "rpc/loop.h"

namespace blockserve {

// A connection whose thread is the test's loop, and what it is told.
class FakeExchange final : public HttpExchange {
 public:
  explicit FakeExchange(Loop& loop) : loop_(loop) {}

  HttpRequest& request() override { return request_; }
  void Post(std::function<void()> task) override {
    ++posts;
    loop_.Post(std::move(task));
  }
  void Respond(HttpResponse given) override {
    if (lost) return;
    EXPECT_FALSE(over()) << "one answer";
    response = std::move(given);
    Release();
  }
  void StartStream(HttpResponse given) override {
    if (lost) return;
    EXPECT_FALSE(over() || head.has_value());
    head = std::move(given);
  }
  void Write(std::string bytes) override {
    if (lost) return;
    EXPECT_TRUE(head.has_value() && !over());
    stream += bytes;
  }
  void EndStream() override {
    if (lost) return;
    EXPECT_TRUE(head.has_value() && !over());
    ended = true;
    Release();
  }
  void set_on_drained(std::function<void()> on_drained) override {
    on_drained_ = std::move(on_drained);
  }
  void set_on_lost(std::function<void(HttpLoss)> on_lost) override {
    on_lost_ = std::move(on_lost);
  }

  bool over() const { return response.has_value() || ended || lost; }
  void Drain() { on_drained_(); }
  void Lose(HttpLoss loss) {
    lost = true;
    const auto on_lost = std::move(on_lost_);
    Release();
    if (on_lost) on_lost(loss);
  }

  std::optional<HttpResponse> response;
  std::optional<HttpResponse> head;
  std::string stream;
  bool ended = false;
  bool lost = false;
  std::atomic<int> posts = 0;

 private:
  void Release() { on_drained_ = nullptr, on_lost_ = nullptr; }

  Loop& loop_;
  HttpRequest request_;
  std::function<void()> on_drained_;
  std::function<void(HttpLoss)> on_lost_;
};

// What the core was asked for, by id.
class FakeCore final : public GenerationCore {
 public:
  GenerationId Generate(GenerationRequest request, std::shared_ptr<GenerationSink> sink) override {
    generations.emplace(++last_id, std::move(sink));
    return last_id;
  }
  GenerationId Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) override {
    scorings.emplace(++last_id, std::move(sink));
    return last_id;
  }
  void Cancel(GenerationId id, absl::Status why) override { cancelled[id] = std::move(why); }
  void Resume(GenerationId id) override { resumed.push_back(id); }
  absl::Status CheckRate(const std::string& key) override { return rate; }
  absl::Status TakeFromRate(const std::string& key) override {
    ++taken_from_rate;
    return rate;
  }
  void OnRefused(const RefusedRequest& request) override { refused.push_back(request); }
  void OnAnswered(RequestMethod method, const absl::Status& status, absl::Duration) override {
    answered.emplace_back(method, status);
  }
  void FillModelStatus(v1::GetModelResponse& response) const override {
    response.set_model_id("id");
  }
  absl::Time Now() const override { return absl::FromUnixSeconds(1'000'000); }

  absl::Status rate;  // what it says of every key's

  GenerationId last_id = 0;
  std::map<GenerationId, std::shared_ptr<GenerationSink>> generations;
  std::map<GenerationId, std::shared_ptr<ScoringSink>> scorings;
  std::map<GenerationId, absl::Status> cancelled;
  std::vector<GenerationId> resumed;
  std::vector<RefusedRequest> refused;
  std::vector<std::pair<RequestMethod, absl::Status>> answered;
  int taken_from_rate = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_FRONT_FIXTURE_H_
