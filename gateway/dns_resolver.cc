#include "gateway/dns_resolver.h"

#include <netdb.h>
#include <sys/socket.h>

#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/thread_name.h"

namespace blockserve {
namespace {

using Addresses = absl::StatusOr<std::vector<std::string>>;
using Done = std::function<void(Addresses)>;

// Where answers go, for as long as somebody wants them.
struct Asker {
  Mutex mutex;
  Loop* loop ABSL_GUARDED_BY(mutex);
};

class DnsResolver {
 public:
  DnsResolver(Loop& loop, HostLookup lookup)
      : lookup_(std::move(lookup)), asker_(std::make_shared<Asker>()) {
    MutexLock lock(&asker_->mutex);
    asker_->loop = &loop;
  }
  ~DnsResolver() {
    MutexLock lock(&asker_->mutex);
    asker_->loop = nullptr;
  }

  void Resolve(const std::string& host, const Done& done) const {
    auto look_up = [asker = asker_, lookup = lookup_, host, done]() mutable {
      SetThreadName("dns");
      Addresses addresses = lookup(host, AF_INET);
      // A worker with both kinds of address is one worker: IPv6 only where there is no IPv4, which
      // a server that does not answer has not said.
      if (absl::IsNotFound(addresses.status())) addresses = lookup(host, AF_INET6);
      MutexLock lock(&asker->mutex);
      if (asker->loop == nullptr) return;
      asker->loop->Post([done = std::move(done), addresses = std::move(addresses)]() mutable {
        done(std::move(addresses));
      });
    };
    try {
      std::thread(std::move(look_up)).detach();
    } catch (const std::system_error& error) {  // too many threads: known workers are kept
      done(absl::UnavailableError(absl::StrCat("cannot be resolved: ", error.what())));
    }
  }

 private:
  const HostLookup lookup_;
  const std::shared_ptr<Asker> asker_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> LookUpHost(const std::string& host, int family) {
  addrinfo hints = {};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (failed != 0) {
    const std::string why = absl::StrCat("cannot be resolved: ", gai_strerror(failed));
    const bool has_none = failed == EAI_NONAME || failed == EAI_NODATA || failed == EAI_ADDRFAMILY;
    return has_none ? absl::NotFoundError(why) : absl::UnavailableError(why);
  }
  std::vector<std::string> addresses;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
      continue;
    }
    addresses.push_back(one->ai_family == AF_INET6 ? absl::StrCat("[", text, "]") : text);
  }
  freeaddrinfo(found);
  return addresses;
}

Discovery::Resolver MakeDnsResolver(Loop& loop, HostLookup lookup) {
  auto resolver = std::make_shared<const DnsResolver>(loop, std::move(lookup));
  return [resolver](const std::string& host, const Done& done) { resolver->Resolve(host, done); };
}

}  // namespace blockserve
