package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

const version = "0.1.0"

// event is one row of the audit log.
type event struct {
	eventType, resource, action, result string
	user                                *caller
	metadata                            map[string]any
}

func (c *caller) event(eventType, resource, action, result string, ids ...uuid.UUID) event {
	if ids == nil {
		// A nil slice would be stored as null.
		ids = []uuid.UUID{}
	}
	metadata := map[string]any{"record_ids": ids, "record_count": len(ids)}
	return event{eventType: eventType, resource: resource, action: action, result: result, user: c, metadata: metadata}
}

const insertEvent = `
	insert into audit_events (
	  id, "timestamp", event_type, user_id, role, resource, action, result,
	  ip_address, metadata, correlation_id, request_id, trace_id, service_version
	)
	values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::inet, $10, $11, $12, $13, $14)`

func (e event) arguments(from origin) ([]any, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	requestID, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	var userID *uuid.UUID
	var role *string
	if e.user != nil {
		userID, role = &e.user.userID, &e.user.role
	}
	return []any{
		id, time.Now(), e.eventType, userID, role, e.resource, e.action, e.result,
		from.address, e.metadata, from.correlationID, requestID, from.traceID, version,
	}, nil
}

// record writes an event outside of a transaction.
func record(ctx context.Context, pool *pgxpool.Pool, from origin, e event) error {
	arguments, err := e.arguments(from)
	if err != nil {
		return err
	}
	_, err = pool.Exec(ctx, insertEvent, arguments...)
	return err
}

// deny records a denied permission, and returns the rejection even if the event cannot be recorded.
func (app *app) deny(ctx context.Context, c *caller, rejection *problem, resource string, ids ...uuid.UUID) error {
	denied := c.event("authorization", resource, "access", "denied", ids...)
	if err := record(ctx, app.pool, c.origin, denied); err != nil {
		slog.ErrorContext(ctx, "failed to audit a denied request", "error", err)
	}
	return rejection
}
