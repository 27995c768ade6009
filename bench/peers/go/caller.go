package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace"
)

const (
	roleCustomer = "customer"
	roleAuditor  = "auditor"
)

// caller is the logged-in user and the origin of the request.
type caller struct {
	userID uuid.UUID
	role   string
	origin origin
}

type origin struct {
	address       string
	correlationID string
	traceID       *string
}

func originOf(r *http.Request) origin {
	address, _, _ := net.SplitHostPort(r.RemoteAddr)
	result := origin{address: address, correlationID: r.Header.Get(correlationHeader)}
	if span := trace.SpanContextFromContext(r.Context()); span.HasTraceID() {
		traceID := span.TraceID().String()
		result.traceID = &traceID
	}
	return result
}

// authenticate looks up the bearer token by its SHA-256. It audits an unknown or expired token.
func (app *app) authenticate(r *http.Request) (*caller, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return nil, unauthenticated
	}
	result := &caller{origin: originOf(r)}
	err := app.findSession(r.Context(), strings.TrimSpace(token), result)
	if errors.Is(err, pgx.ErrNoRows) {
		event := event{
			eventType: "authentication", resource: "sessions", action: "authenticate", result: "failure",
			metadata: map[string]any{"reason": "bad_token"},
		}
		if err := record(r.Context(), app.pool, result.origin, event); err != nil {
			return nil, err
		}
		return nil, unauthenticated
	}
	return result, err
}

func (app *app) findSession(ctx context.Context, token string, result *caller) error {
	ctx, span := tracer.Start(ctx, "SELECT sessions")
	defer span.End()
	hash := sha256.Sum256([]byte(token))
	return app.pool.QueryRow(ctx, `
		select sessions.user_id, users.role
		from sessions
		join users on users.id = sessions.user_id
		where sessions.token_hash = $1 and sessions.expires_at > now()`, hash[:],
	).Scan(&result.userID, &result.role)
}
