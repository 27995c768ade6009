package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

type app struct{ pool *pgxpool.Pool }

type basket struct {
	Items []struct {
		ProductID uuid.UUID `json:"product_id"`
		Quantity  int32     `json:"quantity"`
	} `json:"items"`
}

type order struct {
	ID          uuid.UUID   `json:"id"`
	CustomerID  uuid.UUID   `json:"customer_id"`
	Status      string      `json:"status"`
	Currency    string      `json:"currency"`
	TotalAmount int64       `json:"total_amount"`
	Items       []orderItem `json:"items"`
	CreatedAt   timestamp   `json:"created_at"`
	UpdatedAt   timestamp   `json:"updated_at"`
}

type orderItem struct {
	ProductID  uuid.UUID `json:"product_id"`
	Name       string    `json:"name"`
	UnitAmount int64     `json:"unit_amount"`
	Quantity   int32     `json:"quantity"`
	Amount     int64     `json:"amount"`
}

// timestamp is serialized as RFC 3339 in UTC with microseconds, the resolution of PostgreSQL.
type timestamp struct{ time.Time }

func (t timestamp) MarshalJSON() ([]byte, error) {
	return t.UTC().AppendFormat(nil, `"2006-01-02T15:04:05.000000Z"`), nil
}

var errKeyTaken = errors.New("the key is taken")

func (app *app) placeOrder(w http.ResponseWriter, r *http.Request) {
	order, err := app.place(w, r)
	if err != nil {
		respondWithError(w, r, err)
		return
	}
	if order.replayed {
		w.Header().Set("Idempotency-Replayed", "true")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", "/v1/orders/"+order.id.String())
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(order.body)
}

// orderResponse is the response with a new order, or the replay of an earlier response.
type orderResponse struct {
	id       uuid.UUID
	body     []byte
	replayed bool
}

func (app *app) place(w http.ResponseWriter, r *http.Request) (*orderResponse, error) {
	ctx := r.Context()
	caller, err := app.authenticate(r)
	if err != nil {
		return nil, err
	}
	if caller.role != roleCustomer {
		return nil, app.deny(ctx, caller, forbidden, "routes")
	}
	key, err := idempotencyKey(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		return nil, malformed
	}
	requested, err := readBasket(body)
	if err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	fingerprint := sha256.Sum256(bytes.Join([][]byte{[]byte(r.Method), []byte(r.URL.Path), body}, []byte{0}))

	placed := &orderResponse{id: id}
	err = pgx.BeginFunc(ctx, app.pool, func(tx pgx.Tx) error {
		if err := claim(ctx, tx, caller, key, fingerprint[:], id); err != nil {
			return err
		}
		order, err := priceOrder(ctx, tx, id, caller, requested)
		if err != nil {
			return err
		}
		if placed.body, err = json.Marshal(order); err != nil {
			return err
		}
		return store(ctx, tx, caller, key, order, placed.body)
	})
	if errors.Is(err, errKeyTaken) {
		return app.replay(ctx, caller, key, fingerprint[:])
	}
	if err != nil {
		return nil, err
	}
	ordersCreated.Inc()
	return placed, nil
}

func idempotencyKey(r *http.Request) (string, error) {
	key := r.Header.Get("Idempotency-Key")
	if len(key) >= 2 && strings.HasPrefix(key, `"`) && strings.HasSuffix(key, `"`) {
		key = key[1 : len(key)-1]
	}
	invisible := func(char rune) bool { return char < '!' || char > '~' }
	if key == "" || len(key) > 255 || strings.ContainsFunc(key, invisible) {
		return "", missingKey
	}
	return key, nil
}

func readBasket(body []byte) (*basket, error) {
	requested := new(basket)
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(requested); err != nil {
		if !json.Valid(body) {
			return nil, malformed
		}
		return nil, invalid()
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, malformed
	}
	if len(requested.Items) < 1 || len(requested.Items) > 100 {
		return nil, invalid(fieldError{"/items", "must have 1 to 100 lines"})
	}
	var fieldErrors []fieldError
	for line, item := range requested.Items {
		if item.Quantity < 1 || item.Quantity > 1000 {
			fieldErrors = append(fieldErrors, fieldError{fmt.Sprintf("/items/%d/quantity", line), "must be between 1 and 1000"})
		}
	}
	if fieldErrors != nil {
		return nil, invalid(fieldErrors...)
	}
	return requested, nil
}

func claim(ctx context.Context, tx pgx.Tx, caller *caller, key string, fingerprint []byte, orderID uuid.UUID) error {
	ctx, span := tracer.Start(ctx, "INSERT idempotency_keys")
	defer span.End()
	tag, err := tx.Exec(ctx, `
		insert into idempotency_keys (scope, key, fingerprint, resource_id)
		values ($1, $2, $3, $4)
		on conflict do nothing`, caller.userID.String(), key, fingerprint, orderID)
	if err == nil && tag.RowsAffected() == 0 {
		return errKeyTaken
	}
	return err
}

// replay returns the stored response of the idempotency key. It fails if the key belongs to another request, or has no response yet.
func (app *app) replay(ctx context.Context, caller *caller, key string, fingerprint []byte) (*orderResponse, error) {
	var first []byte
	var orderID *uuid.UUID
	var body *string
	err := app.pool.QueryRow(ctx,
		"select fingerprint, resource_id, response_body from idempotency_keys where scope = $1 and key = $2",
		caller.userID.String(), key,
	).Scan(&first, &orderID, &body)
	switch {
	case err != nil:
		return nil, err
	case !bytes.Equal(first, fingerprint):
		return nil, keyReused
	case orderID == nil || body == nil:
		return nil, inProgress
	}
	return &orderResponse{id: *orderID, body: []byte(*body), replayed: true}, nil
}

type product struct {
	ID         uuid.UUID
	Name       string
	UnitAmount int64
	Currency   string
}

// priceOrder returns the order at the current prices. It rejects unknown products, and products of several currencies.
func priceOrder(ctx context.Context, tx pgx.Tx, id uuid.UUID, caller *caller, requested *basket) (*order, error) {
	ctx, span := tracer.Start(ctx, "SELECT products")
	defer span.End()
	ids := make([]uuid.UUID, len(requested.Items))
	for line, item := range requested.Items {
		ids[line] = item.ProductID
	}
	rows, err := tx.Query(ctx,
		"select id, name, unit_amount, currency from products where id = any($1) and active", ids)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[product])
	if err != nil {
		return nil, err
	}
	products := make(map[uuid.UUID]product, len(found))
	for _, product := range found {
		products[product.ID] = product
	}

	now := timestamp{time.Now().UTC().Truncate(time.Microsecond)}
	priced := &order{ID: id, CustomerID: caller.userID, Status: "pending_payment", CreatedAt: now, UpdatedAt: now}
	var fieldErrors []fieldError
	severalCurrencies := false
	for line, item := range requested.Items {
		product, ok := products[item.ProductID]
		if !ok {
			pointer := fmt.Sprintf("/items/%d/product_id", line)
			fieldErrors = append(fieldErrors, fieldError{pointer, "is not a product that can be ordered"})
			continue
		}
		severalCurrencies = severalCurrencies || (priced.Currency != "" && priced.Currency != product.Currency)
		priced.Currency = product.Currency
		amount := product.UnitAmount * int64(item.Quantity)
		priced.TotalAmount += amount
		priced.Items = append(priced.Items, orderItem{
			ProductID: product.ID, Name: product.Name, UnitAmount: product.UnitAmount,
			Quantity: item.Quantity, Amount: amount,
		})
	}
	if fieldErrors == nil && severalCurrencies {
		fieldErrors = append(fieldErrors, fieldError{"/items", "must all have the same currency"})
	}
	if fieldErrors != nil {
		return nil, invalid(fieldErrors...)
	}
	return priced, nil
}

// store writes the order, its items, the audit event and the response in one batch, which pgx sends as one round trip.
func store(ctx context.Context, tx pgx.Tx, caller *caller, key string, order *order, body []byte) error {
	ctx, span := tracer.Start(ctx, "INSERT orders")
	defer span.End()
	created := caller.event("data_change", "orders", "create", "success", order.ID)
	event, err := created.arguments(caller.origin)
	if err != nil {
		return err
	}
	batch := new(pgx.Batch)
	batch.Queue(`
		insert into orders (id, customer_id, currency, total_amount, created_at, updated_at)
		values ($1, $2, $3, $4, $5, $6)`,
		order.ID, order.CustomerID, order.Currency, order.TotalAmount, order.CreatedAt.Time, order.UpdatedAt.Time)
	for line, item := range order.Items {
		batch.Queue(`
			insert into order_items (order_id, line_number, product_id, name, unit_amount, quantity, amount)
			values ($1, $2, $3, $4, $5, $6, $7)`,
			order.ID, line+1, item.ProductID, item.Name, item.UnitAmount, item.Quantity, item.Amount)
	}
	batch.Queue(insertEvent, event...)
	batch.Queue(`
		update idempotency_keys
		set response_status = 201, response_body = $3, completed_at = now()
		where scope = $1 and key = $2`, caller.userID.String(), key, string(body))
	return tx.SendBatch(ctx, batch).Close()
}

func (app *app) showOrder(w http.ResponseWriter, r *http.Request) {
	order, err := app.show(r)
	if err != nil {
		respondWithError(w, r, err)
		return
	}
	body, err := json.Marshal(order)
	if err != nil {
		respondWithError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

func (app *app) show(r *http.Request) (*order, error) {
	ctx := r.Context()
	caller, err := app.authenticate(r)
	if err != nil {
		return nil, err
	}
	if caller.role == roleAuditor {
		return nil, app.deny(ctx, caller, forbidden, "routes")
	}
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return nil, notFound
	}
	var ownerID *uuid.UUID
	if caller.role == roleCustomer {
		ownerID = &caller.userID
	}
	order, err := app.find(ctx, id, ownerID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, app.deny(ctx, caller, notFound, "orders", id)
	}
	if err == nil && ownerID == nil {
		err = record(ctx, app.pool, caller.origin, caller.event("data_access", "orders", "read", "success", id))
	}
	return order, err
}

// find returns an order, or pgx.ErrNoRows if none has this id. With ownerID, the order must belong to this customer.
func (app *app) find(ctx context.Context, id uuid.UUID, ownerID *uuid.UUID) (*order, error) {
	ctx, span := tracer.Start(ctx, "SELECT orders")
	defer span.End()
	found := new(order)
	err := app.pool.QueryRow(ctx, `
		select id, customer_id, status, currency, total_amount, items, created_at, updated_at
		from orders_with_items
		where id = $1 and ($2::uuid is null or customer_id = $2)`, id, ownerID,
	).Scan(&found.ID, &found.CustomerID, &found.Status, &found.Currency, &found.TotalAmount,
		&found.Items, &found.CreatedAt.Time, &found.UpdatedAt.Time)
	return found, err
}
