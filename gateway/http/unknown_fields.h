// The log's line about fields that clients send and nobody here knows.
#ifndef BLOCKSERVE_GATEWAY_HTTP_UNKNOWN_FIELDS_H_
#define BLOCKSERVE_GATEWAY_HTTP_UNKNOWN_FIELDS_H_

#include <set>
#include <string>
#include <vector>

#include "common/mutex.h"

namespace blockserve {

// Thread-safe. Each name is logged once; names come from clients, so that their form and number are
// bounded.
class UnknownFieldLog {
 public:
  // Those of one request.
  void Note(const std::vector<std::string>& fields);

 private:
  Mutex mutex_;
  std::set<std::string> logged_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_UNKNOWN_FIELDS_H_
