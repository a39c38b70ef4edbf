#include "gateway/simulated_tiers.h"

#include <algorithm>

namespace blockserve {
namespace {

void SetStatus(v1::ItemStatus& status, absl::StatusCode code, const std::string& message) {
  status.set_code(static_cast<int>(code));
  status.set_message(message);
}

}  // namespace

v1::TokenReplyBatch SimulatedTokenWorker::Hello() {
  v1::TokenReplyBatch batch;
  v1::TokenServiceHello& hello = *batch.mutable_hello();
  FillTier(*hello.mutable_tier());
  hello.set_block_length(kSimulatedLength);
  hello.set_context_width(kSimulatedWidth);
  hello.set_vocab_size(kSimulatedVocab);
  hello.set_max_rows(max_rows);
  hello.set_max_queued_rows(max_queued_rows);
  return batch;
}

v1::TokenReplyBatch SimulatedTokenWorker::Answer(const v1::TokenRequestBatch& request,
                                                 uint64_t /*gateway*/) {
  v1::TokenReplyBatch batch;
  batch.mutable_load()->set_steps(1);
  batch.mutable_load()->set_busy_share(busy_share);
  largest_batch = std::max(largest_batch, request.rows_size());
  for (int i = 0; i < request.rows_size(); ++i) {
    const v1::TokenRowRequest& row = request.rows(i);
    if (deadly && deadly(row)) {
      Kill();
      return batch;
    }
    if (hanging && hanging(row)) {
      Hang();
      return batch;
    }
    ++rows;
    v1::TokenRowReply& reply = *batch.add_rows();
    reply.set_id(row.id());
    const absl::Status status = verdict ? verdict(row) : absl::OkStatus();
    if (!status.ok()) {
      SetStatus(*reply.mutable_status(), status.code(), std::string(status.message()));
      continue;
    }
    uint64_t context = 0;
    std::memcpy(&context, request.contexts().data() + static_cast<size_t>(i) * sizeof(context),
                sizeof(context));
    context ^= bits;
    for (int j = 0; penalizes && j < row.counts_size(); ++j) {
      context = SimulatedHash(context, static_cast<uint64_t>(row.counts(j)));
    }
    std::vector<int32_t> block;
    for (int j = 0; j < row.forced_size(); ++j) {
      if (row.score_forced()) reply.add_logprobs(SimulatedLogprob(context, block, row.forced(j)));
      block.push_back(row.forced(j));
    }
    while (static_cast<int32_t>(block.size()) < row.limit() && !reply.stopped()) {
      const int64_t position = row.position() + reply.tokens_size();
      uint64_t hash = SimulatedNext(context, block, row.seed(), row.choice(), position);
      const auto stops = [&](int32_t token) {
        return std::find(row.stop_ids().begin(), row.stop_ids().end(), token) !=
               row.stop_ids().end();
      };
      while (position < row.min_tokens_position() &&
             stops(static_cast<int32_t>(hash % kSimulatedVocab))) {
        ++hash;
      }
      const int32_t token = static_cast<int32_t>(hash % kSimulatedVocab);
      if (row.logprobs()) {
        const float off = wrong_bits && position % 3 == 0 ? 0.5f : 0.0f;
        reply.add_logprobs(SimulatedLogprob(context, block, token) + off);
      }
      block.push_back(token);
      reply.add_tokens(token);
      reply.set_stopped(stops(token));
    }
  }
  return batch;
}

v1::BlockReplyBatch SimulatedBlockReplica::Hello() {
  v1::BlockReplyBatch batch;
  v1::BlockServiceHello& hello = *batch.mutable_hello();
  FillTier(*hello.mutable_tier());
  hello.set_block_length(kSimulatedLength);
  hello.set_context_width(kSimulatedWidth);
  hello.set_context_type(context_type);
  hello.set_page_blocks(kPageBlocks);
  hello.set_pages(pages);
  hello.set_max_blocks_per_sequence(max_blocks);
  hello.set_keeps_pools_apart(keeps_pools_apart);
  batch.mutable_load()->set_free_pages(pages - UsedPages());
  return batch;
}

int64_t SimulatedBlockReplica::UsedPages() const {
  int64_t used = 0;
  for (const auto& [id, sequence] : sequences) {
    const int64_t blocks = static_cast<int64_t>(sequence.tokens.size()) / kSimulatedLength;
    used += (blocks + kPageBlocks - 1) / kPageBlocks;
  }
  return used;
}

v1::BlockReplyBatch SimulatedBlockReplica::Answer(const v1::BlockRequestBatch& request,
                                                  uint64_t gateway) {
  v1::BlockReplyBatch batch;
  for (const v1::BlockRequest& item : request.items()) {
    if (item.has_cancel()) continue;
    if (deadly && deadly(item)) {
      Kill();
      return batch;
    }
    v1::BlockReply& reply = *batch.add_items();
    reply.set_id(item.id());
    reply.set_last(true);
    const absl::Status status = verdict ? verdict(item) : absl::OkStatus();
    if (!status.ok()) {
      SetStatus(*reply.mutable_status(), status.code(), std::string(status.message()));
      continue;
    }
    const std::vector<uint64_t> rows = Work(item, gateway, reply);
    reply.set_rows(static_cast<int>(rows.size()));
    for (uint64_t row : rows) {
      if (wrong_bits && row % 3 == 0) row ^= 1;
      row ^= bits;
      batch.mutable_contexts()->append(reinterpret_cast<const char*>(&row), sizeof(row));
    }
  }
  batch.mutable_load()->set_free_pages(pages - UsedPages());
  return batch;
}

std::vector<uint64_t> SimulatedBlockReplica::Work(const v1::BlockRequest& request, uint64_t gateway,
                                                  v1::BlockReply& reply) {
  const auto refuse = [&](absl::StatusCode code, const std::string& message) {
    SetStatus(*reply.mutable_status(), code, message);
    return std::vector<uint64_t>();
  };
  const SequenceKey key = {gateway, request.sequence()};
  const auto found = sequences.find(key);
  if (request.has_close()) {
    if (found != sequences.end()) sequences.erase(found);
    return {};
  }
  if (request.has_open()) {
    ++opens;
    const v1::OpenSequence& open = request.open();
    pools.push_back(absl::MakeUint128(open.cache_pool_high(), open.cache_pool_low()));
    const std::vector<int32_t> tokens(open.tokens().begin(), open.tokens().end());
    if (tokens.empty() || tokens.size() % kSimulatedLength != 0) {
      return refuse(absl::StatusCode::kInvalidArgument, "tokens are not whole blocks");
    }
    if (draining) return refuse(absl::StatusCode::kUnavailable, "draining");
    if (found != sequences.end() && found->second.tokens != tokens) {
      return refuse(absl::StatusCode::kAborted, "open with other tokens");
    }
    const int64_t blocks = static_cast<int64_t>(tokens.size()) / kSimulatedLength;
    if (checks_reserve && blocks + open.reserve_blocks() > pages * kPageBlocks) {
      return refuse(absl::StatusCode::kInvalidArgument, "tokens and reserve_blocks");
    }
    if (refuse_opens > 0) {
      --refuse_opens;
      return refuse(absl::StatusCode::kResourceExhausted, "no pages");
    }
    if (UsedPages() + (blocks + kPageBlocks - 1) / kPageBlocks > pages) {
      return refuse(absl::StatusCode::kResourceExhausted, "no pages");
    }
    const int64_t first = open.first_context() < 0 ? blocks - 1 : open.first_context();
    reply.set_first_block(first);
    std::vector<uint64_t> rows;
    uint64_t context = SimulatedContext({});
    for (int64_t block = 0; block < blocks; ++block) {
      const auto at = static_cast<size_t>(block * kSimulatedLength);
      context = SimulatedContext(absl::MakeSpan(tokens).subspan(at, kSimulatedLength), context);
      if (block >= first) rows.push_back(context);
    }
    if (!open.close_after()) sequences[key] = {tokens, context};
    return rows;
  }
  if (request.has_fork()) {
    ++forks;
    const auto parent = sequences.find({gateway, request.fork().parent()});
    if (parent == sequences.end()) return refuse(absl::StatusCode::kNotFound, "no such parent");
    std::vector<int32_t> tokens = parent->second.tokens;
    tokens.resize(static_cast<size_t>(request.fork().blocks()) * kSimulatedLength);
    const uint64_t context = SimulatedContext(tokens);
    sequences[key] = {std::move(tokens), context};
    return {};
  }
  ++appends;
  if (found == sequences.end()) return refuse(absl::StatusCode::kNotFound, "no such sequence");
  auto& [tokens, context] = found->second;
  const v1::AppendBlock& append = request.append();
  const std::vector<int32_t> block(append.tokens().begin(), append.tokens().end());
  const int64_t length = static_cast<int64_t>(tokens.size()) / kSimulatedLength;
  if (append.block_index() == length) {
    const bool full = suspends_when_full && length % kPageBlocks == 0 && UsedPages() + 1 > pages;
    if (suspend > 0 || full) {
      if (!full) --suspend;
      sequences.erase(found);
      reply.set_suspended(true);
      return refuse(absl::StatusCode::kUnavailable, "suspended");
    }
    tokens.insert(tokens.end(), block.begin(), block.end());
    context = SimulatedContext(block, context);
  } else if (append.block_index() != length - 1) {
    return refuse(absl::StatusCode::kInvalidArgument, "block_index");
  } else if (!std::equal(block.begin(), block.end(), tokens.end() - kSimulatedLength)) {
    return refuse(absl::StatusCode::kAborted, "other tokens");
  }
  reply.set_first_block(append.block_index());
  return {context};
}

}  // namespace blockserve
