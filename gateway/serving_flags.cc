#include "gateway/serving_flags.h"

namespace blockserve {

void AddAdmissionFlags(FlagTable& flags, GatewayConfig& gateway) {
  flags.Subject("Admission");
  flags.Add("max_live_batches",
            "choices at a time, in best batches of all token workers; 0: no such limit",
            &gateway.max_live_batches);
  flags.Add("max_live_choices", "and at most so many, whatever the workers say",
            &gateway.max_live_choices);
  flags.Add("max_starting_requests", "requests between the queue and their first block",
            &gateway.max_starting_requests);
  flags.Add("max_queued_requests", "requests that wait; more are refused",
            &gateway.max_queued_requests);
  flags.Add("slow_reader_timeout",
            "a stream whose client leaves unread what waits for it is cut off",
            &gateway.slow_reader_timeout);
  flags.Add("limits_file", "JSON: what each API key may have; empty: no limits",
            &gateway.limits_file);
}

void AddStreamFlags(FlagTable& flags, GatewayConfig& gateway) {
  flags.Subject("Streams");
  flags.Add("stream_interval",
            "tokens of a choice that are sent together, of requests that name none",
            &gateway.stream_interval);
  flags.Add("grpc_write_threads", "threads that write the streams of gRPC clients",
            &gateway.grpc_write_threads);
}

void AddHttpFlags(FlagTable& flags, HttpFrontOptions& http, absl::string_view address_flag) {
  constexpr absl::string_view kSubject = "HTTP";
  HttpConnectionLimits& limits = http.server.limits;
  flags.Subject(kSubject);
  flags.Add("http_threads", "threads of the HTTP connections, and as many that read long texts",
            &http.server.threads);
  flags.Add("http_max_connections", "HTTP connections; more are answered 503",
            &http.server.max_connections);
  flags.Add("http_max_header_bytes", "of an HTTP request, 65535 at most; more: 431",
            &limits.read.max_header_bytes);
  flags.Add("http_max_body_bytes", "of an HTTP request; more: 413", &limits.read.max_body_bytes);
  flags.Add("http_header_timeout", "for a request's headers", &limits.header_timeout);
  flags.Add("http_body_timeout", "for a request's body", &limits.body_timeout);
  flags.Add("http_idle_timeout", "between two requests", &limits.idle_timeout);
  flags.Add("http_write_timeout", "a client that has not read what waits for it is cut off",
            &limits.write_timeout);
  flags.Add("http_cors_origin", "origin whose pages browsers let in; *: all",
            &http.api.cors_origin);
  flags.SubjectNeeds(kSubject, address_flag);
}

void AddSecurityFlags(FlagTable& flags, ServerTlsFiles& tls, GatewayConfig& gateway) {
  flags.Subject("Security");
  flags.Add("tls_cert", "PEM file: certificate of this server; empty: plaintext", &tls.certificate);
  flags.Add("tls_key", "PEM file: its key", &tls.key);
  flags.Add("tls_client_ca", "PEM file: callers must show a certificate of this CA",
            &tls.client_ca);
  flags.Add("api_keys", "file of API keys that callers need (blockserve keys); empty: none",
            &gateway.api_keys);
}

void AddObservabilityFlags(FlagTable& flags, GatewayConfig& gateway, LoggingOptions& logging,
                           MetricsFlags& metrics) {
  flags.Subject("Observability");
  metrics.Add(flags);
  flags.Add("log_level", "debug, info, warning, error or off", &logging.level);
  flags.Add("log_format", "text, or json: an object a line", &logging.format);
  flags.Add("log_requests", "a line for each request that is over", &gateway.log_requests);
  flags.Add("log_prompts", "with its prompt: what users wrote goes into the log",
            &gateway.log_prompts);
  flags.Needs("log_prompts", "log_requests");
  flags.Add("trace_sample_ratio", "share of requests whose spans are logged; 0: none",
            &gateway.trace_sample_ratio);
}

}  // namespace blockserve
