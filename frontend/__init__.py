"""The CPU tier's server: takes requests over gRPC and sends them to executors. No torch, and nothing of gpu_executor."""
