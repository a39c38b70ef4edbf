#include "gateway/dns_resolver.h"

#include <boost/asio/ip/tcp.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using Tcp = boost::asio::ip::tcp;
using Done = std::function<void(absl::StatusOr<std::vector<std::string>>)>;

std::vector<std::string> Addresses(const Tcp::resolver::results_type& results) {
  std::vector<std::string> addresses;
  for (const auto& entry : results) {
    const boost::asio::ip::address address = entry.endpoint().address();
    addresses.push_back(address.is_v6() ? absl::StrCat("[", address.to_string(), "]")
                                        : address.to_string());
  }
  return addresses;
}

void ResolveFamily(const std::shared_ptr<Tcp::resolver>& resolver, const std::string& host, bool v6,
                   const Done& done) {
  resolver->async_resolve(
      v6 ? Tcp::v6() : Tcp::v4(), host, "",
      [resolver, host, v6, done](const boost::system::error_code& error,
                                 const Tcp::resolver::results_type& results) {
        if (!error && !results.empty()) {
          done(Addresses(results));
        } else if (!v6) {
          // A worker with both kinds of address is one worker: IPv6 only where there is no IPv4.
          ResolveFamily(resolver, host, /*v6=*/true, done);
        } else {
          done(absl::UnavailableError(absl::StrCat("cannot be resolved: ", error.message())));
        }
      });
}

}  // namespace

Discovery::Resolver MakeDnsResolver(AsioLoop& loop) {
  return [&loop](const std::string& host, const Done& done) {
    ResolveFamily(std::make_shared<Tcp::resolver>(loop.context()), host, /*v6=*/false, done);
  };
}

}  // namespace blockserve
