"""Recording by the kernel's tracepoints: rings of perf events, or an instance of tracefs."""
