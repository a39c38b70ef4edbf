#include "rpc/health_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/logging.h"
#include "common/thread_name.h"
#include "rpc/deadline.h"
#include "rpc/listen_address.h"

namespace blockserve {
namespace {

constexpr char kFlag[] = "--health-listen";
// Of a probe or two.
constexpr size_t kMaxMemoryBytes = size_t{16} << 20;
constexpr absl::Duration kLongestSampleInterval = absl::Seconds(1);
constexpr absl::Duration kShortestSampleInterval = absl::Milliseconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(
    const std::string& listen_address) {
  std::unique_ptr<HealthServer> result(new HealthServer);
  if (listen_address.empty()) return result;
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  SetServerArguments(builder);
  builder.SetResourceQuota(grpc::ResourceQuota(kFlag).Resize(kMaxMemoryBytes));
  absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> acceptor = ConnectionAcceptor::Bind(
      kFlag, listen_address, PortUse::kAlone, grpc::InsecureServerCredentials(), builder);
  if (!acceptor.ok()) return acceptor.status();
  result->acceptor_ = *std::move(acceptor);
  result->server_ = builder.BuildAndStart();
  if (absl::Status status = result->acceptor_->Start(result->server_ != nullptr); !status.ok()) {
    return status;
  }
  result->address_ = result->acceptor_->address();
  result->Set(kStartupService, false);
  result->Set(kReadinessService, false);
  result->Set(kLivenessService, true);
  LogInfo(absl::StrCat("health on ", result->address_));
  return result;
}

HealthServer::~HealthServer() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.SignalAll();
  }
  if (watcher_.joinable()) watcher_.join();
  if (acceptor_ != nullptr) acceptor_->Stop();
  if (server_ != nullptr) {
    server_->Shutdown(GrpcDeadlineIn(absl::ZeroDuration()));
    server_->Wait();
  }
}

void HealthServer::SetReady() {
  Set(kStartupService, true);
  Set(kReadinessService, true);
}

void HealthServer::SetDraining() { Set(kReadinessService, false); }

void HealthServer::WatchProgress(std::vector<std::shared_ptr<const Progress>> threads,
                                 absl::Duration stall_bound) {
  if (server_ == nullptr || watcher_.joinable()) return;
  watcher_ = std::thread(
      [this, threads = std::move(threads), stall_bound] { Watch(threads, stall_bound); });
}

void HealthServer::Set(const char* service, bool serving) {
  if (server_ == nullptr) return;
  grpc::HealthCheckServiceInterface* const health = server_->GetHealthCheckService();
  health->SetServingStatus(service, serving);
  if (service == kReadinessService) health->SetServingStatus("", serving);
}

void HealthServer::Watch(const std::vector<std::shared_ptr<const Progress>>& threads,
                         absl::Duration stall_bound) {
  SetThreadName("health-watch");
  const SteadyClock clock;
  const absl::Duration interval =
      std::clamp(stall_bound / 8, kShortestSampleInterval, kLongestSampleInterval);
  std::vector<StallWatch> watches;
  for (const auto& progress : threads) watches.emplace_back(*progress, stall_bound, clock.Now());
  bool was_stuck = false;
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (!stop_) changed_.WaitWithTimeout(&mutex_, interval);
      if (stop_) return;
    }
    bool stuck = false;
    for (StallWatch& watch : watches) stuck |= watch.IsStuck(clock.Now());
    if (stuck == was_stuck) continue;
    was_stuck = stuck;
    Set(kLivenessService, !stuck);
    if (stuck) {
      LogError(absl::StrCat("work has waited for ", absl::FormatDuration(stall_bound),
                            " and none was done: not live"));
    } else {
      LogWarning("work is being done again: live");
    }
  }
}

}  // namespace blockserve
