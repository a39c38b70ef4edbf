// An HTTP request as it was read, and an answer as it will be written.
#ifndef BLOCKSERVE_RPC_HTTP_MESSAGE_H_
#define BLOCKSERVE_RPC_HTTP_MESSAGE_H_

#include <boost/beast/http/fields.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace blockserve {

inline constexpr char kRequestIdHeader[] = "X-Request-Id";

struct HttpRequest {
  // A header's value; empty where there is none.
  absl::string_view header(absl::string_view name) const {
    const auto found = fields.find({name.data(), name.size()});
    if (found == fields.end()) return {};
    return {found->value().data(), found->value().size()};
  }

  std::string method;  // "GET"
  std::string path;    // without the query; percent-decoded
  std::string query;   // after "?"
  boost::beast::http::fields fields;
  std::string body;
  bool http_1_0 = false;
  bool keep_alive = true;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // beside those of every answer
};

// "Not Found"; "Error" for numbers without a name.
absl::string_view HttpReason(int status);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_MESSAGE_H_
