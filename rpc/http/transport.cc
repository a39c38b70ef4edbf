#include "rpc/http/transport.h"

#include <boost/asio/post.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <utility>

namespace blockserve {
namespace {

using Tcp = boost::asio::ip::tcp;

class PlainTransport final : public HttpTransport {
 public:
  explicit PlainTransport(Tcp::socket socket) : socket_(std::move(socket)) {}

  void Handshake(std::function<void(boost::system::error_code)> done) override {
    boost::asio::post(socket_.get_executor(), [done = std::move(done)] { done({}); });
  }
  void ReadSome(boost::asio::mutable_buffer buffer, Done done) override {
    socket_.async_read_some(buffer, std::move(done));
  }
  void Write(boost::asio::const_buffer buffer, Done done) override {
    boost::asio::async_write(socket_, buffer, std::move(done));
  }
  void ShutdownWrite(std::function<void()> done) override {
    boost::system::error_code ignored;
    socket_.shutdown(Tcp::socket::shutdown_send, ignored);
    boost::asio::post(socket_.get_executor(), std::move(done));
  }
  void Close() override {
    boost::system::error_code ignored;
    socket_.close(ignored);
  }

 private:
  Tcp::socket socket_;
};

class TlsTransport final : public HttpTransport {
 public:
  TlsTransport(Tcp::socket socket, std::shared_ptr<boost::asio::ssl::context> context)
      : context_(std::move(context)), stream_(std::move(socket), *context_) {}

  void Handshake(std::function<void(boost::system::error_code)> done) override {
    stream_.async_handshake(boost::asio::ssl::stream_base::server, std::move(done));
  }
  void ReadSome(boost::asio::mutable_buffer buffer, Done done) override {
    stream_.async_read_some(buffer, std::move(done));
  }
  void Write(boost::asio::const_buffer buffer, Done done) override {
    boost::asio::async_write(stream_, buffer, std::move(done));
  }
  void ShutdownWrite(std::function<void()> done) override {
    // As if the other side had ended: else OpenSSL waits for its end, and takes what it still sends
    // for an error that ends reading too. The alert is made within async_shutdown's call.
    SSL_set_shutdown(stream_.native_handle(), SSL_RECEIVED_SHUTDOWN);
    stream_.async_shutdown([done = std::move(done)](boost::system::error_code) { done(); });
    SSL_set_shutdown(stream_.native_handle(), SSL_SENT_SHUTDOWN);
  }
  void Close() override {
    boost::system::error_code ignored;
    stream_.lowest_layer().close(ignored);
  }

 private:
  const std::shared_ptr<boost::asio::ssl::context> context_;  // of this connection, if reloaded too
  boost::asio::ssl::stream<Tcp::socket> stream_;
};

}  // namespace

std::unique_ptr<HttpTransport> MakePlainTransport(Tcp::socket socket) {
  return std::make_unique<PlainTransport>(std::move(socket));
}

std::unique_ptr<HttpTransport> MakeTlsTransport(
    Tcp::socket socket, std::shared_ptr<boost::asio::ssl::context> context) {
  return std::make_unique<TlsTransport>(std::move(socket), std::move(context));
}

}  // namespace blockserve
