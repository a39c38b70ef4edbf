// Continues a text on a running server: generate ADDRESS TEXT.
//
// Built against an installed blockserve:
//   find_package(blockserve REQUIRED)
//   target_link_libraries(generate PRIVATE blockserve::client)
#include <iostream>

#include "client/client.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: generate ADDRESS TEXT\n";
    return 2;
  }
  blockserve::Client client(argv[1]);
  blockserve::v1::GenerateRequest request;
  request.set_text(argv[2]);
  request.mutable_stop()->set_max_tokens(64);
  request.mutable_sampling()->set_temperature(0.8f);

  const absl::Status status =
      client.Generate(request, [](const blockserve::v1::GenerateResponse& event) {
        if (event.has_output()) std::cout << event.output().text() << std::flush;
        if (event.has_finished()) std::cout << event.finished().text() << '\n';
        return true;
      });
  if (!status.ok()) {
    std::cerr << status << '\n';
    return 1;
  }
  return 0;
}
