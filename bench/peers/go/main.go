// A service in Go to compare measurements with: the routes POST /v1/orders and GET /v1/orders/{id}, composed as the
// documentation of its modules recommends.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	requestTimeout  = 10 * time.Second
	shutdownTimeout = 10 * time.Second
	bodyLimit       = 64 * 1024
)

func main() {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	if err := run(); err != nil {
		slog.Error("the service failed", "error", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	flushTraces, err := startTracing(ctx)
	if err != nil {
		return err
	}
	pool, err := connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()

	app := &app{pool: pool}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/orders", instrumented("POST", "/v1/orders", app.placeOrder))
	mux.Handle("GET /v1/orders/{id}", instrumented("GET", "/v1/orders/{id}", app.showOrder))
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })

	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout + time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	listener, err := net.Listen("tcp", os.Getenv("LISTEN_ADDRESS"))
	if err != nil {
		return err
	}
	slog.Info("listening", "address", listener.Addr().String())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	deadline, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	err = server.Shutdown(deadline)
	if flushErr := flushTraces(deadline); flushErr != nil {
		slog.Warn("failed to export the last spans", "error", flushErr)
	}
	return err
}

func connect(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	config.MaxConns = 16
	if text := os.Getenv("DATABASE_MAX_CONNECTIONS"); text != "" {
		size, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("DATABASE_MAX_CONNECTIONS: %w", err)
		}
		config.MaxConns = int32(size)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return pool, pool.Ping(ctx)
}
