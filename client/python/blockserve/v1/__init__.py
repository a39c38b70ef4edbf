"""Generated protobuf and gRPC modules; generate_stubs.py writes them."""
