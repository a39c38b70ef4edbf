// A connection's bytes, plain or under TLS.
#ifndef BLOCKSERVE_RPC_HTTP_TRANSPORT_H_
#define BLOCKSERVE_RPC_HTTP_TRANSPORT_H_

#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/system/error_code.hpp>
#include <functional>
#include <memory>

namespace blockserve {

// One read and one write may be under way at a time. Callbacks come on the socket's io_context,
// never from within the call.
class HttpTransport {
 public:
  using Done = std::function<void(boost::system::error_code error, size_t bytes)>;

  virtual ~HttpTransport() = default;
  // What has to be done before the first byte.
  virtual void Handshake(std::function<void(boost::system::error_code)> done) = 0;
  virtual void ReadSome(boost::asio::mutable_buffer buffer, Done done) = 0;
  // All of it.
  virtual void Write(boost::asio::const_buffer buffer, Done done) = 0;
  // Tells the other side that nothing more will be written, and goes on reading.
  virtual void ShutdownWrite(std::function<void()> done) = 0;
  // What is under way ends with an error.
  virtual void Close() = 0;
};

std::unique_ptr<HttpTransport> MakePlainTransport(boost::asio::ip::tcp::socket socket);
std::unique_ptr<HttpTransport> MakeTlsTransport(boost::asio::ip::tcp::socket socket,
                                                std::shared_ptr<boost::asio::ssl::context> context);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_TRANSPORT_H_
