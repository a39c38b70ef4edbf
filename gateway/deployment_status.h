// What the gateway knows of its workers at one moment, for people to look at.
#ifndef BLOCKSERVE_GATEWAY_DEPLOYMENT_STATUS_H_
#define BLOCKSERVE_GATEWAY_DEPLOYMENT_STATUS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace blockserve {

struct WorkerStatus {
  std::string address;
  std::string name;  // as it calls itself; empty before its first hello
  bool connected = false;
  bool usable = false;    // takes new work
  int64_t in_flight = 0;  // rows or blocks of ours that it has not answered
  int64_t sequences = 0;  // block tier: that it holds for us
  uint64_t steps = 0;     // since its start
  // These two are 0 where it has nothing of ours to answer and has told nothing for 5 s.
  int32_t batch = 0;       // token tier: rows of the step it is in; block tier: in_flight
  float busy_share = 0;    // of the last seconds, 0 to 1
  int64_t pages = 0;       // block tier: of KV
  int64_t free_pages = 0;  // those that hold prefixes which nobody uses counted in
};

struct DeploymentStatus {
  std::vector<WorkerStatus> block;
  std::vector<WorkerStatus> token;
  int64_t live_requests = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_DEPLOYMENT_STATUS_H_
