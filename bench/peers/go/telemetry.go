package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const correlationHeader = "X-Correlation-Id"

var (
	tracer = otel.Tracer("peer")

	requests = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "http_requests_total",
		Help: "Completed requests, by status.",
	}, []string{"path", "method", "code"})
	durations = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "http_request_duration_seconds",
		Help:    "Duration of requests.",
		Buckets: prometheus.DefBuckets,
	}, []string{"path", "method"})
	inFlight = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "http_requests_in_flight",
		Help: "Requests in flight.",
	})
	ordersCreated = promauto.NewCounter(prometheus.CounterOpts{
		Name: "orders_created_total",
		Help: "Placed orders.",
	})
)

// startTracing exports spans over OTLP if an endpoint is set, and returns a function that exports the last spans. The
// SDK reads the endpoint and the sampler from the environment.
func startTracing(ctx context.Context) (func(context.Context) error, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return provider.Shutdown, nil
}

// instrumented wraps a handler with metrics, a span, the correlation id, the access log and the request timeout.
func instrumented(method, path string, handler http.HandlerFunc) http.Handler {
	labels := prometheus.Labels{"path": path}
	var instrumented http.Handler = accessLog(path, handler)
	instrumented = otelhttp.NewHandler(instrumented, method+" "+path)
	instrumented = promhttp.InstrumentHandlerDuration(durations.MustCurryWith(labels), instrumented)
	instrumented = promhttp.InstrumentHandlerCounter(requests.MustCurryWith(labels), instrumented)
	return promhttp.InstrumentHandlerInFlight(inFlight, instrumented)
}

type statusRecorder struct {
	http.ResponseWriter
	status int
	bytes  int
}

func (recorder *statusRecorder) WriteHeader(status int) {
	recorder.status = status
	recorder.ResponseWriter.WriteHeader(status)
}

func (recorder *statusRecorder) Write(data []byte) (int, error) {
	written, err := recorder.ResponseWriter.Write(data)
	recorder.bytes += written
	return written, err
}

func accessLog(path string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		correlationID := r.Header.Get(correlationHeader)
		if correlationID == "" {
			correlationID = uuid.NewString()
			r.Header.Set(correlationHeader, correlationID)
		}
		w.Header().Set(correlationHeader, correlationID)
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		next(recorder, r.WithContext(ctx))

		span := trace.SpanContextFromContext(r.Context())
		slog.LogAttrs(ctx, slog.LevelInfo, "request",
			slog.String("method", r.Method),
			slog.String("route", path),
			slog.String("path", r.URL.Path),
			slog.Int("status", recorder.status),
			slog.Int("response_bytes", recorder.bytes),
			slog.Float64("duration_ms", float64(time.Since(started).Microseconds())/1000),
			slog.String("client_address", r.RemoteAddr),
			slog.String("user_agent", r.UserAgent()),
			slog.String("correlation_id", correlationID),
			slog.String("trace_id", span.TraceID().String()),
			slog.String("span_id", span.SpanID().String()),
		)
	}
}
