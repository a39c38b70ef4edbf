// blockserve: serving, generating, scoring and looking into models from the command line.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "app/command.h"
#include "common/program.h"

namespace blockserve {
namespace {

constexpr Command kCommands[] = {
    {"serve", "serve a model: all three tiers in one process", &RunServe},
    {"generate", "continue a prompt", &RunGenerate},
    {"score", "log-probabilities of a given text", &RunScore},
    {"evaluate", "perplexity and bits per byte of a text file", &RunEvaluate},
    {"tokenize", "token ids of a text", &RunTokenize},
    {"detokenize", "text of token ids", &RunDetokenize},
    {"inspect", "what a model folder holds", &RunInspect},
    {"keys", "make an API key for a server", &RunKeys},
};

std::string Help() {
  std::string text = "blockserve COMMAND [--flag value]…\nServes Block Transformers.\n\n";
  for (const Command& command : kCommands) {
    absl::StrAppend(&text, absl::StrFormat("  %-12s %s\n", std::string(command.name),
                                           std::string(command.summary)));
  }
  absl::StrAppend(
      &text,
      "\nblockserve COMMAND --help lists the flags of a command; --flagfile FILE reads "
      "them from a file.\nblockserve --version tells version, commit and arithmetics.\n");
  return text;
}

int Main(int argc, char** argv) {
  const Arguments arguments(argv + 1, argv + argc);
  if (arguments.empty()) {
    return ReportUsageError("blockserve", absl::InvalidArgumentError("a command is missing"));
  }
  const std::string& name = arguments[0];
  if (name == "help" || name == "--help" || name == "-h") {
    // "help COMMAND" is "COMMAND --help".
    for (const Command& command : kCommands) {
      if (name == "help" && arguments.size() > 1 && command.name == arguments[1]) {
        return command.run({"--help"});
      }
    }
    std::fputs(Help().c_str(), stdout);
    return kExitOk;
  }
  if (name == "--version") {
    std::puts(VersionText("blockserve").c_str());
    return kExitOk;
  }
  // What gRPC writes to standard error comes again in the one line of the error. A server logs it.
  if (name != "serve") setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  for (const Command& command : kCommands) {
    if (command.name == name) return command.run({arguments.begin() + 1, arguments.end()});
  }
  return ReportUsageError("blockserve",
                          absl::InvalidArgumentError(absl::StrCat("unknown command ", name)));
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
