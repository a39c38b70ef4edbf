#include "gateway/tier_membership.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "gateway/retry.h"

namespace blockserve {

namespace {

// A stream that broke may be back within this.
constexpr absl::Duration kTwinMemory = absl::Seconds(3);

}  // namespace

std::string TierMembership::OtherAddress(const std::string& address, uint64_t incarnation,
                                         absl::Time now) const {
  if (incarnation == 0) return "";
  for (const auto& [other, process] : processes_) {
    if (other != address && process.incarnation == incarnation &&
        now - process.lost_at < kTwinMemory) {
      return other;
    }
  }
  return "";
}

bool TierMembership::IsTwin(TierMember& member, const TierIdentity& identity, absl::Time now) {
  const std::string other = OtherAddress(member.address, identity.incarnation, now);
  member.twin = other.empty() ? 0 : identity.incarnation;
  if (other.empty()) return false;
  const std::string reason = absl::StrCat(tier_, " '", identity.name, "' at ", member.address,
                                          " is the process at ", other, ": name it once");
  if (std::string& known = refusals_[member.address]; known != reason) {
    known = reason;
    LogError(absl::StrCat("not used: ", known));
  }
  return true;
}

bool TierMembership::HasTwin(const TierMember& member, absl::Time now) const {
  return !OtherAddress(member.address, member.twin, now).empty();
}

bool TierMembership::Connected(TierMember& member, TierIdentity identity, absl::Time now) {
  member.connected = true;
  member.draining = false;
  member.failures.Connected();
  if (member.identity.incarnation != identity.incarnation) member.condemned = false;
  member.identity = std::move(identity);
  member.group = {member.identity.part_hash, member.identity.numeric_id,
                  member.identity.model_digest};
  const absl::Status status = CheckIdentity(expected_, member.identity, tier_, member.address);
  member.fits = status.ok();
  if (member.fits) {
    ever_fitted_ = true;
    refusals_.erase(member.address);
    LogInfo(absl::StrCat(tier_, " '", member.identity.name, "' at ", member.address,
                         " connected, numeric id ", member.identity.numeric_id));
  } else if (std::string& known = refusals_[member.address]; known != status.message()) {
    known = std::string(status.message());
    LogError(absl::StrCat("not used: ", known));
  }
  Update(member, now);
  return member.fits;
}

bool TierMembership::Lost(TierMember& member, const absl::Status& status, absl::Time now) {
  const bool may_have_died = member.connected && !member.draining && !status.ok() &&
                             status.code() != absl::StatusCode::kFailedPrecondition &&
                             status.code() != absl::StatusCode::kResourceExhausted;
  const bool left = member.draining || member.removed;
  if (member.connected && member.fits) {
    const std::string who =
        absl::StrCat(tier_, " '", member.identity.name, "' at ", member.address);
    if (left) {
      LogInfo(absl::StrCat(who, " has left", status.ok() ? "" : ": " + status.ToString()));
    } else {
      LogWarning(
          absl::StrCat(who, " lost: ", status.ok() ? "it ended the stream" : status.ToString()));
    }
  }
  if (member.connected) processes_[member.address].lost_at = now;
  const std::string failure = member.failures.Lost(tier_, member.address, status, left, now);
  // The service is the one that found that the two do not fit.
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    const std::string reason = absl::StrCat(tier_, " at ", member.address, ": ", status.message());
    if (std::string& known = refusals_[member.address]; known != reason) {
      known = reason;
      LogError(absl::StrCat("not used: ", known));
    }
  } else {
    if (!failure.empty()) LogWarning(failure);
    refusals_.erase(member.address);  // whoever comes back may be another
  }
  member.connected = false;
  Update(member, now);
  return may_have_died;
}

void TierMembership::Update(TierMember& member, absl::Time now) {
  // Whoever is no longer named here may be named by another address now.
  if (member.removed) {
    processes_.erase(member.address);
  } else if (member.connected) {
    processes_[member.address] = {member.identity.incarnation};
  }
  const bool counts = member.usable();
  if (counts == member.counted) return;
  member.counted = counts;
  if (counts) {
    presence_.Add(member.group, now);
  } else {
    presence_.Remove(member.group, now);
  }
}

absl::Status TierMembership::Verdict(absl::Duration tier_wait, absl::Time deadline,
                                     absl::Time now) const {
  if (presence_.workers() > 0) return absl::OkStatus();
  if (now < GiveUpTime(presence_.AwaySince(), tier_wait, deadline)) return absl::OkStatus();
  if (refusals_.empty()) return absl::UnavailableError(absl::StrCat("no ", tier_, " is there"));
  const std::string& refusal = refusals_.begin()->second;
  if (!ever_fitted_) return absl::FailedPreconditionError(refusal);
  return absl::UnavailableError(
      absl::StrCat("no ", tier_, " is there that fits this gateway's model: ", refusal));
}

}  // namespace blockserve
