package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
)

// problem is an error in the format of RFC 9457.
type problem struct {
	Type   string       `json:"type"`
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Errors []fieldError `json:"errors,omitempty"`
}

type fieldError struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

func (p *problem) Error() string { return p.Title }

func newProblem(status int, slug, title string) *problem {
	return &problem{Type: "/problems/" + slug, Title: title, Status: status}
}

var (
	malformed       = newProblem(http.StatusBadRequest, "malformed-request", "Malformed request")
	missingKey      = newProblem(http.StatusBadRequest, "missing-idempotency-key", "Idempotency-Key required")
	unauthenticated = newProblem(http.StatusUnauthorized, "unauthenticated", "Authentication required")
	forbidden       = newProblem(http.StatusForbidden, "forbidden", "Permission denied")
	notFound        = newProblem(http.StatusNotFound, "not-found", "Not found")
	inProgress      = newProblem(http.StatusConflict, "request-under-way", "Request in progress")
	keyReused       = newProblem(http.StatusUnprocessableEntity, "idempotency-key-reused", "Idempotency-Key reused")
	timeout         = newProblem(http.StatusGatewayTimeout, "timeout", "Request timed out")
	internal        = newProblem(http.StatusInternalServerError, "internal-error", "Internal error")
)

func invalid(errors ...fieldError) *problem {
	p := newProblem(http.StatusUnprocessableEntity, "invalid-request", "Invalid request")
	p.Errors = errors
	return p
}

// respondWithError sends a problem unchanged. Any other error is logged, and sent as an internal error or a timeout.
func respondWithError(w http.ResponseWriter, r *http.Request, err error) {
	var response *problem
	if !errors.As(err, &response) {
		slog.ErrorContext(r.Context(), "request failed", "error", err)
		response = internal
		if errors.Is(err, context.DeadlineExceeded) {
			response = timeout
		}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	if response.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(response.Status)
	_ = json.NewEncoder(w).Encode(response)
}
