#include "gateway/tier_membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/logging.h"

namespace blockserve {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr absl::Duration kWait = absl::Seconds(10);
constexpr absl::Time kNoDeadline = absl::InfiniteFuture();

ExpectedModel Expected() { return {"config", "tokenizer", 4, 64, 512}; }

TierIdentity Fitting() {
  TierIdentity identity;
  identity.protocol_version = kTierProtocolVersion;
  identity.config_hash = "config";
  identity.tokenizer_hash = "tokenizer";
  identity.part_hash = "part";
  identity.numeric_id = "f32-1";
  identity.name = "worker";
  identity.block_length = 4;
  identity.context_width = 64;
  identity.vocab_size = 512;
  return identity;
}

TEST(CheckIdentity, NamesWhatDiffers) {
  EXPECT_TRUE(CheckIdentity(Expected(), Fitting(), "token worker", "host:1").ok());
  const auto refused = [](auto change) {
    TierIdentity identity = Fitting();
    change(identity);
    const absl::Status status = CheckIdentity(Expected(), identity, "token worker", "host:1");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("token worker 'worker' at host:1"));
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](TierIdentity& i) { i.config_hash = "x"; }), HasSubstr("config hash"));
  EXPECT_THAT(refused([](TierIdentity& i) { i.tokenizer_hash = "x"; }),
              HasSubstr("tokenizer hash"));
  EXPECT_THAT(refused([](TierIdentity& i) { i.block_length = 8; }), HasSubstr("block length"));
  EXPECT_THAT(refused([](TierIdentity& i) { i.context_width = 8; }), HasSubstr("context width"));
  EXPECT_THAT(refused([](TierIdentity& i) { i.vocab_size = 8; }), HasSubstr("vocabulary size"));
  EXPECT_THAT(refused([](TierIdentity& i) { i.protocol_version = kTierProtocolVersion + 2; }),
              HasSubstr("protocol version"));
  EXPECT_THAT(refused([](TierIdentity& i) { i.knows_context_type = false; }),
              HasSubstr("contexts of a type"));
}

TEST(CheckIdentity, NeighbouringProtocolVersionsWorkTogether) {
  TierIdentity identity = Fitting();
  identity.protocol_version = kTierProtocolVersion + 1;
  EXPECT_TRUE(CheckIdentity(Expected(), identity, "t", "a").ok());
  identity.protocol_version = 0;  // a hello without one
  EXPECT_FALSE(CheckIdentity(Expected(), identity, "t", "a").ok());
}

TEST(CheckIdentity, NamesACapacityThatCannotBe) {
  TierIdentity identity = Fitting();
  identity.impossible = ImpossibleCapacity({{"max_rows", 64, 100}, {"max_queued_rows", 0, 100}});
  EXPECT_EQ(identity.impossible, "");
  identity.impossible = ImpossibleCapacity({{"max_rows", 64, 100}, {"max_queued_rows", -1, 100}});
  const absl::Status status = CheckIdentity(Expected(), identity, "token worker", "host:1");
  EXPECT_THAT(status.message(), HasSubstr("has max_queued_rows -1, which is not from 0 to 100"));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST(TierMembership, AProcessIsOneMember) {
  absl::Time now = absl::FromUnixSeconds(1000);
  TierMembership membership("token worker", Expected(), now);
  TierMember one, two;
  one.address = "host:1";
  two.address = "localhost:1";
  TierIdentity identity = Fitting();
  identity.incarnation = 7;
  EXPECT_FALSE(membership.IsTwin(one, identity, now));
  EXPECT_TRUE(membership.Connected(one, identity, now));
  EXPECT_FALSE(membership.IsTwin(one, identity, now));  // it comes again
  EXPECT_TRUE(membership.IsTwin(two, identity, now));
  // The second stream may have ended the first one before it was heard of.
  membership.Lost(one, absl::UnavailableError("this gateway has a newer stream"), now);
  now += absl::Seconds(1);
  EXPECT_TRUE(membership.HasTwin(two, now));
  now += absl::Seconds(3);
  EXPECT_FALSE(membership.HasTwin(two, now));
  EXPECT_TRUE(membership.Connected(one, identity, now));
  EXPECT_TRUE(membership.HasTwin(two, now));
  one.removed = true;
  membership.Update(one, now);
  EXPECT_FALSE(membership.HasTwin(two, now));
  EXPECT_FALSE(membership.IsTwin(two, identity, now));
}

TEST(TierPresence, TellsTheLargestGroupAndSinceWhenTheOthersAreAway) {
  const absl::Time start = absl::FromUnixSeconds(1000);
  TierPresence presence(start);
  const TierGroup a{"part", "f32-a"};
  const TierGroup b{"part", "f32-b"};
  EXPECT_FALSE(presence.Largest().has_value());
  EXPECT_EQ(presence.AwaySince(), start);
  presence.Add(a, start);
  presence.Add(b, start);
  presence.Add(b, start);
  EXPECT_EQ(*presence.Largest(), b);
  EXPECT_EQ(presence.AwaySince(), absl::InfiniteFuture());
  const absl::Time later = start + absl::Seconds(5);
  presence.Remove(b, later);
  EXPECT_EQ(presence.AwaySince(b), absl::InfiniteFuture());
  presence.Remove(b, later);
  EXPECT_EQ(presence.AwaySince(b), later);
  EXPECT_EQ(*presence.Largest(), a);
  EXPECT_EQ(presence.workers(), 1);
}

TEST(BestPair, TakesTheLargestPairOfOneModelAndNeverMixesTwo) {
  TierPresence blocks(absl::UnixEpoch()), tokens(absl::UnixEpoch());
  EXPECT_FALSE(BestPair(blocks, tokens).has_value());
  const auto add = [](TierPresence& presence, const char* id, const char* model, int workers) {
    for (int i = 0; i < workers; ++i) presence.Add({"part", id, model}, absl::UnixEpoch());
  };
  add(blocks, "b-new", "new", 3);
  add(tokens, "t-old", "old", 5);
  EXPECT_FALSE(BestPair(blocks, tokens).has_value());
  add(blocks, "b-old", "old", 1);
  std::optional<TierPair> pair = BestPair(blocks, tokens);
  ASSERT_TRUE(pair.has_value());
  EXPECT_EQ(pair->block.numeric_id + pair->token.numeric_id, "b-oldt-old");
  add(tokens, "t-new", "new", 2);
  pair = BestPair(blocks, tokens);
  EXPECT_EQ(pair->block.numeric_id + pair->token.numeric_id, "b-newt-new");
  // Of two that fit the same replicas, the one with more workers.
  add(tokens, "t-new-2", "new", 4);
  EXPECT_EQ(BestPair(blocks, tokens)->token.numeric_id, "t-new-2");
}

// The old ones go one by one: what begins with the last of them would be cut off.
TEST(BestPair, OfEqualsTakesTheOneThatHasGrownLastAsLargestDoes) {
  for (const bool back : {false, true}) {
    absl::Time now = absl::UnixEpoch();
    TierPresence blocks(now), tokens(now);
    const TierGroup old_group{"part", back ? "t-b" : "t-a", ""};
    const TierGroup new_group{"part", back ? "t-a" : "t-b", ""};
    blocks.Add({"part", "b", ""}, now);
    for (int i = 0; i < 2; ++i) tokens.Add(old_group, now += absl::Seconds(1));
    tokens.Add(new_group, now += absl::Seconds(1));
    EXPECT_EQ(BestPair(blocks, tokens)->token, old_group);
    EXPECT_EQ(*tokens.Largest(), old_group);
    tokens.Remove(old_group, now += absl::Seconds(1));
    EXPECT_EQ(BestPair(blocks, tokens)->token, new_group);
    EXPECT_EQ(*tokens.Largest(), new_group);
  }
}

TEST(BestPair, ATierThatDoesNotTellItsModelPairsWithAny) {
  TierPresence blocks(absl::UnixEpoch()), tokens(absl::UnixEpoch());
  blocks.Add({"part", "b", ""}, absl::UnixEpoch());
  tokens.Add({"part", "t", "model"}, absl::UnixEpoch());
  EXPECT_TRUE(BestPair(blocks, tokens).has_value());
}

TEST(TierMembership, VerdictWaitsThenRefuses) {
  const absl::Time start = absl::FromUnixSeconds(1000);
  TierMembership tier("token worker", Expected(), start);
  EXPECT_TRUE(tier.Verdict(kWait, kNoDeadline, start + absl::Seconds(9)).ok());
  EXPECT_EQ(tier.Verdict(kWait, kNoDeadline, start + absl::Seconds(10)).code(),
            absl::StatusCode::kUnavailable);
  TierMember member;
  member.address = "host:1";
  EXPECT_TRUE(tier.Connected(member, Fitting(), start + absl::Seconds(20)));
  EXPECT_TRUE(member.usable());
  EXPECT_TRUE(tier.Verdict(kWait, kNoDeadline, start + absl::Hours(1)).ok());
  tier.Lost(member, absl::UnavailableError("reset"), start + absl::Hours(1));
  EXPECT_TRUE(tier.Verdict(kWait, kNoDeadline, start + absl::Hours(1) + absl::Seconds(9)).ok());
  EXPECT_FALSE(tier.Verdict(kWait, kNoDeadline, start + absl::Hours(1) + absl::Seconds(10)).ok());
}

TEST(TierMembership, AWorkerOfAnotherModelIsWaitedOutAndThenNamed) {
  const absl::Time start = absl::FromUnixSeconds(1000);
  TierMembership tier("token worker", Expected(), start);
  TierMember stranger;
  stranger.address = "host:1";
  TierIdentity other = Fitting();
  other.config_hash = "other";
  EXPECT_FALSE(tier.Connected(stranger, other, start));
  EXPECT_FALSE(stranger.usable());
  EXPECT_TRUE(tier.Verdict(kWait, kNoDeadline, start + absl::Seconds(9)).ok());
  const absl::Status never = tier.Verdict(kWait, kNoDeadline, start + kWait);
  EXPECT_EQ(never.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(never.message(), HasSubstr("host:1"));
  // Before a deadline the reason is told too.
  EXPECT_EQ(tier.Verdict(kWait, start + absl::Seconds(1), start + absl::Seconds(1)).code(),
            absl::StatusCode::kFailedPrecondition);
  TierMember good;
  good.address = "host:2";
  EXPECT_TRUE(tier.Connected(good, Fitting(), start));
  EXPECT_TRUE(tier.Verdict(kWait, kNoDeadline, start + absl::Hours(1)).ok());
  // An outage of the good one is an outage, whoever else is there.
  const absl::Time lost = start + absl::Hours(1);
  tier.Lost(good, absl::UnavailableError("reset"), lost);
  EXPECT_TRUE(tier.Verdict(kWait, kNoDeadline, lost + absl::Seconds(9)).ok());
  const absl::Status gone = tier.Verdict(kWait, kNoDeadline, lost + kWait);
  EXPECT_EQ(gone.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(gone.message(), HasSubstr("host:1"));
  tier.Forget(stranger);
  EXPECT_EQ(tier.Verdict(kWait, kNoDeadline, lost + kWait).message(), "no token worker is there");
}

TEST(TierMembership, OnlyAStreamThatBrokeMayBeADeath) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  TierMembership tier("block service", Expected(), now);
  const auto lost = [&](const absl::Status& status, bool draining) {
    TierMember member;
    EXPECT_TRUE(tier.Connected(member, Fitting(), now));
    member.draining = draining;
    return tier.Lost(member, status, now);
  };
  EXPECT_TRUE(lost(absl::UnavailableError("connection reset"), false));
  EXPECT_TRUE(lost(absl::InternalError("no such frame"), false));
  EXPECT_FALSE(lost(absl::UnavailableError("connection reset"), true));
  EXPECT_FALSE(lost(absl::OkStatus(), false));
  EXPECT_FALSE(lost(absl::ResourceExhaustedError("memory quota"), false));
  EXPECT_FALSE(lost(absl::FailedPreconditionError("another model"), false));
  // Whom nobody has reached cannot have died of anything.
  TierMember never;
  EXPECT_FALSE(tier.Lost(never, absl::UnavailableError("refused"), now));
}

// A roll-out is nothing to warn of.
TEST(TierMembership, WarnsOfWhatIsLostAndNotOfWhatLeaves) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  TierMembership tier("token worker", Expected(), now);
  const auto logged = [&](void (*change)(TierMember&), const absl::Status& status) {
    TierMember member;
    member.address = "host:1";
    EXPECT_TRUE(tier.Connected(member, Fitting(), now));
    change(member);
    testing::internal::CaptureStderr();
    EXPECT_TRUE(ConfigureLogging({.program = "p"}).ok());
    tier.Lost(member, status, now);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(logged([](TierMember&) {}, absl::UnavailableError("reset")),
              ContainsRegex("warning .*token worker 'worker' at host:1 lost: .*reset"));
  EXPECT_THAT(logged([](TierMember&) {}, absl::OkStatus()), ContainsRegex("warning .*lost: it"));
  EXPECT_THAT(logged([](TierMember& m) { m.draining = true; }, absl::OkStatus()),
              ContainsRegex("info .*token worker 'worker' at host:1 has left"));
  EXPECT_THAT(logged([](TierMember& m) { m.removed = true; }, absl::UnavailableError("reset")),
              ContainsRegex("info .*has left: .*reset"));
}

TEST(TierMembership, DrainingWorkersDoNotCount) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  TierMembership tier("token worker", Expected(), now);
  TierMember member;
  tier.Connected(member, Fitting(), now);
  member.draining = true;
  tier.Update(member, now);
  EXPECT_EQ(tier.presence().workers(), 0);
  tier.Lost(member, absl::OkStatus(), now);
  EXPECT_TRUE(tier.Connected(member, Fitting(), now));  // another process at the same address
  EXPECT_EQ(tier.presence().workers(), 1);
}

}  // namespace
}  // namespace blockserve
