#include "gateway/discovery.h"

#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/logging.h"

namespace blockserve {
namespace {

bool IsNumericHost(absl::string_view host) {
  if (absl::StartsWith(host, "[")) return true;
  bool dots_and_digits = !host.empty();
  for (const char c : host) dots_and_digits &= absl::ascii_isdigit(c) || c == '.';
  return dots_and_digits;
}

}  // namespace

absl::StatusOr<std::vector<DiscoveryTarget>> ParseTargets(absl::string_view list,
                                                          absl::string_view flag) {
  std::vector<DiscoveryTarget> targets;
  for (absl::string_view entry : absl::StrSplit(list, ',')) {
    entry = absl::StripAsciiWhitespace(entry);
    const auto refuse = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(flag, ": '", entry, "' ", why));
    };
    if (entry.empty()) return refuse("is an empty address");
    if (absl::StartsWith(entry, "inproc:") || absl::StartsWith(entry, "unix:")) {
      targets.push_back({"", "", std::string(entry)});
      continue;
    }
    const size_t colon = entry.rfind(':');
    if (colon == absl::string_view::npos || colon == 0) return refuse("is not host:port");
    const absl::string_view host = entry.substr(0, colon);
    const absl::string_view port = entry.substr(colon + 1);
    int number = 0;
    if (!absl::SimpleAtoi(port, &number) || number < 1 || number > 65535) {
      return refuse("has no port from 1 to 65535");
    }
    if (absl::StrContains(host, ':') &&
        !(absl::StartsWith(host, "[") && absl::EndsWith(host, "]"))) {
      return refuse("is not host:port (an IPv6 address stands in brackets)");
    }
    if (IsNumericHost(host)) {
      targets.push_back({"", "", std::string(entry)});
    } else {
      targets.push_back({std::string(host), std::string(port), ""});
    }
  }
  return targets;
}

struct Discovery::State : std::enable_shared_from_this<Discovery::State> {
  State(Loop& loop, std::string what, std::vector<DiscoveryTarget> targets, absl::Duration interval,
        Resolver resolver, Listener listener)
      : loop(loop),
        what(std::move(what)),
        targets(std::move(targets)),
        interval(interval),
        resolver(std::move(resolver)),
        listener(std::move(listener)),
        found(this->targets.size()),
        failing(this->targets.size(), false) {}

  void Resolve(size_t index) {
    const std::weak_ptr<State> weak = weak_from_this();
    resolver(targets[index].host,
             [weak, index](absl::StatusOr<std::vector<std::string>> addresses) {
               const std::shared_ptr<State> self = weak.lock();
               if (self == nullptr || self->stopped) return;
               self->Take(index, std::move(addresses));
               self->loop.PostAfter(self->interval, [weak, index] {
                 const std::shared_ptr<State> again = weak.lock();
                 if (again != nullptr && !again->stopped) again->Resolve(index);
               });
             });
  }

  void Take(size_t index, absl::StatusOr<std::vector<std::string>> addresses) {
    const DiscoveryTarget& target = targets[index];
    if (!addresses.ok()) {
      if (!failing[index]) {
        LogWarning(absl::StrCat(what, ": ", target.host, ": ", addresses.status().message()));
      }
      failing[index] = true;
      return;
    }
    failing[index] = false;
    found[index].clear();
    for (const std::string& host : *addresses) {
      found[index].insert(absl::StrCat(host, ":", target.port));
    }
    Announce();
  }

  // Two names may lead to one address: what counts is the union.
  void Announce() {
    std::set<std::string> now;
    for (const std::set<std::string>& addresses : found) {
      now.insert(addresses.begin(), addresses.end());
    }
    const std::set<std::string> before = std::exchange(announced, now);
    for (const std::string& address : now) {
      if (!before.contains(address)) listener.on_added(address);
    }
    for (const std::string& address : before) {
      if (!now.contains(address)) listener.on_removed(address);
    }
  }

  Loop& loop;
  const std::string what;
  const std::vector<DiscoveryTarget> targets;
  const absl::Duration interval;
  const Resolver resolver;
  const Listener listener;
  std::vector<std::set<std::string>> found;  // of each target
  std::vector<bool> failing;                 // so that a failure is logged once
  std::set<std::string> announced;
  bool stopped = false;
};

Discovery::Discovery(Loop& loop, std::string what, std::vector<DiscoveryTarget> targets,
                     absl::Duration interval, Resolver resolver, Listener listener)
    : state_(std::make_shared<State>(loop, std::move(what), std::move(targets), interval,
                                     std::move(resolver), std::move(listener))) {}

Discovery::~Discovery() { state_->stopped = true; }

void Discovery::Start() {
  for (size_t i = 0; i < state_->targets.size(); ++i) {
    if (state_->targets[i].host.empty()) state_->found[i].insert(state_->targets[i].address);
  }
  state_->Announce();
  for (size_t i = 0; i < state_->targets.size(); ++i) {
    if (!state_->targets[i].host.empty()) state_->Resolve(i);
  }
}

}  // namespace blockserve
