// Memory that the connections of one HTTP server share for what is long and on its way.
#ifndef BLOCKSERVE_RPC_HTTP_ROOM_H_
#define BLOCKSERVE_RPC_HTTP_ROOM_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace blockserve {

class HttpRoom {
 public:
  explicit HttpRoom(int64_t bytes) : left_(bytes) {}
  bool Take(int64_t bytes) {
    if (left_.fetch_sub(bytes) >= bytes) return true;
    GiveBack(bytes);
    return false;
  }
  void GiveBack(int64_t bytes) { left_.fetch_add(bytes); }

 private:
  std::atomic<int64_t> left_;
};

// What one connection has of a room for one request, or for one answer; on the connection's thread.
class HttpRoomShare {
 public:
  // Short ones need none: they are on their way whatever else is.
  static constexpr int64_t kShortBytes = 16 << 10;

  explicit HttpRoomShare(std::shared_ptr<HttpRoom> room) : room_(std::move(room)) {}
  ~HttpRoomShare() { Release(); }
  HttpRoomShare(const HttpRoomShare&) = delete;
  HttpRoomShare& operator=(const HttpRoomShare&) = delete;

  // So many more bytes of it; false where there is no room for them.
  bool Add(size_t bytes) {
    bytes_ += static_cast<int64_t>(bytes);
    const int64_t more = bytes_ - kShortBytes - held_;
    if (more <= 0) return true;
    if (!room_->Take(more)) return false;
    held_ += more;
    return true;
  }
  // So many bytes of it are gone.
  void Remove(size_t bytes) {
    bytes_ = std::max(bytes_ - static_cast<int64_t>(bytes), int64_t{0});
    const int64_t needed = std::max(bytes_ - kShortBytes, int64_t{0});
    if (held_ <= needed) return;
    room_->GiveBack(held_ - needed);
    held_ = needed;
  }
  // It is no more, or somebody else's to count.
  void Release() {
    bytes_ = 0;
    if (held_ > 0) room_->GiveBack(std::exchange(held_, 0));
  }

 private:
  const std::shared_ptr<HttpRoom> room_;
  int64_t bytes_ = 0;
  int64_t held_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_ROOM_H_
