// The page at `/`: page.html, compiled in.
#ifndef BLOCKSERVE_GATEWAY_HTTP_PAGE_H_
#define BLOCKSERVE_GATEWAY_HTTP_PAGE_H_

#include "absl/strings/string_view.h"

namespace blockserve {

absl::string_view PageHtml();

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_PAGE_H_
