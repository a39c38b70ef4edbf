#include "rpc/http/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/socket_base.hpp>
#include <deque>
#include <future>
#include <limits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log_budget.h"
#include "common/logging.h"
#include "rpc/asio_loop.h"
#include "rpc/connection_acceptor.h"
#include "rpc/listen_address.h"

namespace blockserve {
namespace {

using Tcp = boost::asio::ip::tcp;

// Bounds what the network holds of a stream whose client does not read: what is in there has been
// decoded already.
constexpr int kSendBufferBytes = 64 << 10;
// Connections beyond the limit that are told so; those beyond are closed without a word.
constexpr int64_t kRefusedConnections = 64;
// Of requests that are on their way, or one of the longest where that is longer; and of answers.
constexpr int64_t kArrivalBytes = int64_t{256} << 20;
constexpr int64_t kDepartureBytes = int64_t{512} << 20;
constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);
// A client that vanishes without a word while it waits for its answer is missed after 30 s. Fewer
// probes would part with clients whose network loses some of them.
constexpr int kKeepaliveIdleS = 10;
constexpr int kKeepaliveIntervalS = 5;
constexpr int kKeepaliveProbes = 4;

void KeepAlive(int fd) {
  const auto set = [fd](int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof(value));
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveIdleS);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveIntervalS);
  set(IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
}

}  // namespace

struct HttpServer::Impl {
  // The connections of one thread.
  struct Worker {
    explicit Worker(const char* thread_name) : loop(thread_name) {}
    AsioLoop loop;
    std::shared_ptr<HttpMailbox> mailbox = std::make_shared<HttpMailbox>(&loop);
    std::shared_ptr<HttpSessionContext> context;
    std::unordered_set<HttpSession*> sessions;  // on the loop
  };

  ~Impl() { Shutdown(absl::ZeroDuration()); }

  void Accept(Tcp::acceptor& acceptor) {
    Worker& worker = *workers[next_worker++ % workers.size()];
    acceptor.async_accept(
        worker.loop.context(),
        [this, &acceptor, &worker](boost::system::error_code error, Tcp::socket socket) {
          if (cut_off || error == boost::asio::error::operation_aborted) return;
          if (error) {
            // Out of descriptors, most likely: others must end first.
            Warn(absl::StrCat("accepting an HTTP connection: ", error.message()));
            workers[0]->loop.PostAfter(kAcceptPause, [this, &acceptor] {
              if (!cut_off) Accept(acceptor);
            });
            return;
          }
          if (socket.native_handle() >= descriptors) {
            Warn("too many HTTP connections: new ones are closed (ulimit -n)");
            socket.close(error);
          } else {
            TakeConnection(worker, std::move(socket));
          }
          Accept(acceptor);
        });
  }

  void Warn(const std::string& message) {
    if (const auto left_out = accept_failures.Take(SteadyClock().Now())) {
      LogEvent(LogLevel::kWarning, message, {{"left_out", *left_out}});
    }
  }

  void TakeConnection(Worker& worker, Tcp::socket socket) {
    const int64_t before = connections.fetch_add(1);
    if (before >= options.max_connections + kRefusedConnections) return EndConnection();
    const bool refuse = before >= options.max_connections;
    boost::system::error_code ignored;
    socket.set_option(Tcp::no_delay(true), ignored);
    socket.set_option(boost::asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
    KeepAlive(socket.native_handle());
    std::shared_ptr<boost::asio::ssl::context> tls = options.tls ? options.tls() : nullptr;
    boost::asio::steady_timer timer(worker.loop.context());
    auto session = std::make_shared<HttpSession>(
        tls == nullptr ? MakePlainTransport(std::move(socket))
                       : MakeTlsTransport(std::move(socket), std::move(tls)),
        std::move(timer), worker.context, [this, &worker](HttpSession* over) {
          worker.sessions.erase(over);
          EndConnection();
        });
    worker.loop.Post([this, &worker, session = std::move(session), refuse] {
      if (cut_off) return session->Abort();
      worker.sessions.insert(session.get());
      if (refuse) {
        session->Refuse(503, absl::StrCat("there are ", options.max_connections,
                                          " connections already; try again later"));
      } else {
        session->Start();
        if (draining) session->AnswerOnce();
      }
    });
  }

  void EndConnection() {
    if (connections.fetch_sub(1) == 1 && draining) NoteEmpty();
  }

  void NoteEmpty() {
    MutexLock lock(&mutex);
    empty = true;
    changed.SignalAll();
  }

  void ForEachSession(void (HttpSession::*act)()) {
    for (const std::unique_ptr<Worker>& worker : workers) {
      std::promise<void> done;
      worker->loop.Post([&] {
        const std::unordered_set<HttpSession*> sessions = worker->sessions;
        for (HttpSession* session : sessions) (session->shared_from_this().get()->*act)();
        done.set_value();
      });
      done.get_future().wait();
    }
  }

  void StartDraining() {
    if (draining.exchange(true)) return;
    ForEachSession(&HttpSession::Drain);
    if (connections.load() == 0) NoteEmpty();
  }

  void Shutdown(absl::Duration grace) {
    if (std::exchange(shut_down, true)) return;
    StartDraining();
    {
      const absl::Time limit = workers[0]->loop.Now() + grace;
      MutexLock lock(&mutex);
      while (!empty) {
        const absl::Duration left = limit - workers[0]->loop.Now();
        if (left <= absl::ZeroDuration()) break;
        changed.WaitWithTimeout(&mutex, left);
      }
    }
    cut_off = true;
    std::promise<void> closed;
    workers[0]->loop.Post([&] {
      boost::system::error_code ignored;
      for (Tcp::acceptor& acceptor : acceptors) acceptor.close(ignored);
      closed.set_value();
    });
    closed.get_future().wait();
    ForEachSession(&HttpSession::Abort);
    for (const std::unique_ptr<Worker>& worker : workers) {
      worker->mailbox->Close();
      worker->loop.Join();
    }
  }

  HttpServerOptions options;
  std::string address;
  std::vector<std::unique_ptr<Worker>> workers;
  std::deque<Tcp::acceptor> acceptors;  // on the first worker's loop
  size_t next_worker = 0;
  int descriptors = std::numeric_limits<int>::max();  // that connections may take
  LogBudget accept_failures;                          // on the loop of workers[0]
  std::atomic<int64_t> connections{0};
  std::atomic<bool> draining{false};
  std::atomic<bool> cut_off{false};
  bool shut_down = false;
  Mutex mutex;
  CondVar changed;
  bool empty ABSL_GUARDED_BY(mutex) = false;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const HttpServerOptions& options, HttpHandler handler,
    std::function<HttpResponse(int status, const std::string& message)> make_error) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  if (options.keeps_reserve) impl->descriptors = DescriptorsForConnections();
  const auto departure_room = std::make_shared<HttpRoom>(kDepartureBytes);
  const auto arrival_room = std::make_shared<HttpRoom>(
      std::max(kArrivalBytes, static_cast<int64_t>(options.limits.read.max_body_bytes)));
  for (int32_t i = 0; i < options.threads; ++i) {
    auto worker = std::make_unique<Impl::Worker>(options.thread_name);
    worker->context = std::make_shared<HttpSessionContext>();
    worker->context->limits = options.limits;
    worker->context->headers = options.headers;
    worker->context->handler = handler;
    worker->context->check_head = options.check_head;
    worker->context->request_id = options.request_id;
    worker->context->make_error = make_error;
    worker->context->mailbox = worker->mailbox;
    worker->context->arrival_room = arrival_room;
    worker->context->departure_room = departure_room;
    impl->workers.push_back(std::move(worker));
  }
  boost::asio::io_context& context = impl->workers[0]->loop.context();
  absl::StatusOr<std::vector<int>> sockets =
      BindSockets(options.listen_flag, options.listen_address, options.port_use);
  if (!sockets.ok()) {
    impl->draining = true;
    return sockets.status();
  }
  impl->address = BoundAddress(options.listen_address, PortOf(sockets->front()));
  for (const int fd : *sockets) {
    impl->acceptors.emplace_back(context, FamilyOf(fd) == AF_INET6 ? Tcp::v6() : Tcp::v4(), fd);
  }
  for (Tcp::acceptor& acceptor : impl->acceptors) {
    boost::system::error_code error;
    acceptor.listen(boost::asio::socket_base::max_listen_connections, error);
    if (error) {
      impl->draining = true;
      return CannotListen(options.listen_flag, options.listen_address, error.message());
    }
  }
  if (!options.tls && !options.plaintext_is_meant && !IsLoopback(options.listen_address)) {
    LogWarning(NotEncrypted(options.listen_flag, options.listen_address, "--tls-cert"));
  }
  Impl& made = *impl;
  made.workers[0]->loop.Post([&made] {
    for (Tcp::acceptor& acceptor : made.acceptors) made.Accept(acceptor);
  });
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

const std::string& HttpServer::address() const { return impl_->address; }
void HttpServer::StartDraining() { impl_->StartDraining(); }
void HttpServer::Shutdown(absl::Duration grace) { impl_->Shutdown(grace); }

}  // namespace blockserve
