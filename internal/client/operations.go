package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// CodeOperationRunning is the code of the problem that an operation of the kind runs already; the problem's status_url leads to it.
const CodeOperationRunning = "operation-running"

// States of an operation.
const (
	OperationRunning   = "running"
	OperationSucceeded = "succeeded"
	OperationFailed    = "failed"
	OperationCancelled = "cancelled"
)

// OperationProgress is how far an operation is: Done of Total (0: not known) in Unit.
type OperationProgress struct {
	Stage string `json:"stage"`
	Done  int64  `json:"done"`
	Total int64  `json:"total,omitempty"`
	Unit  string `json:"unit,omitempty"`
}

// Operation is a long work that a server carries out. Input and Result belong to its kind.
type Operation struct {
	ID        string            `json:"id"`
	Kind      string            `json:"kind"`
	State     string            `json:"state"`
	By        string            `json:"by"`
	Input     json.RawMessage   `json:"input,omitempty"`
	Progress  OperationProgress `json:"progress"`
	Result    json.RawMessage   `json:"result,omitempty"`
	Error     string            `json:"error,omitempty"`
	Code      string            `json:"code,omitempty"`
	StartedAt time.Time         `json:"started_at"`
	EndedAt   time.Time         `json:"ended_at,omitzero"`
}

// OperationError is an operation that ended without success.
type OperationError struct{ Operation }

// Error says what ended it.
func (e *OperationError) Error() string {
	return fmt.Sprintf("%s was not finished, it %s: %s", e.Kind, map[string]string{OperationFailed: "failed", OperationCancelled: "was cancelled"}[e.State], e.Operation.Error)
}

// operationCancelTimeout bounds the request that cancels an operation whose caller is gone.
const operationCancelTimeout = 30 * time.Second

// Operations lists those that the server's node carries out, or has carried out lately, the latest first.
func (c *Client) Operations(ctx context.Context) ([]Operation, error) {
	var out struct {
		Operations []Operation `json:"operations"`
	}
	err := c.call(ctx, http.MethodGet, "api/operations", nil, &out)
	return out.Operations, err
}

// CancelOperation cancels an operation. It may run a little longer.
func (c *Client) CancelOperation(ctx context.Context, id string) (*Operation, error) {
	return ask[Operation](ctx, c, http.MethodPost, route("api", "operations", id, "cancel"), nil)
}

// RunOperation asks for an operation by a POST of input to path, follows it to its end and reads its result into result (nil to ignore
// it), also of one that ended otherwise where there is one; the error is then an [OperationError]. told hears of each progress. When ctx
// ends, the operation is cancelled and its end waited for.
func (c *Client) RunOperation(ctx context.Context, path string, input any, told func(OperationProgress), result any) error {
	var o Operation
	if err := c.call(ctx, http.MethodPost, path, input, &o); err != nil {
		return err
	}
	end, err := c.FollowOperation(ctx, o.ID, told)
	if ctx.Err() != nil {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationCancelTimeout)
		defer cancel()
		if _, cancelErr := c.CancelOperation(stopping, o.ID); cancelErr != nil {
			return fmt.Errorf("cancel %s, which may run on: %w", o.Kind, cancelErr)
		}
		if end, err = c.FollowOperation(stopping, o.ID, nil); err == nil && end.State == OperationSucceeded {
			err = ctx.Err() // it was done before it heard
		}
	}
	if err != nil {
		return err
	}
	if result != nil && len(end.Result) > 0 && string(end.Result) != "null" {
		if err := json.Unmarshal(end.Result, result); err != nil {
			return fmt.Errorf("the result of %s is not imgsrv's: %w", end.Kind, err)
		}
	}
	if end.State != OperationSucceeded {
		return &OperationError{*end}
	}
	return nil
}

// FollowOperation gives an operation at its end. Broken connections are mended; a server that started anew knows the operation no more,
// and the error says so. told, if it isn't nil, hears of each progress.
func (c *Client) FollowOperation(ctx context.Context, id string, told func(OperationProgress)) (*Operation, error) {
	attempt := attempts{Retry: c.retry}
	for {
		end, err := c.readOperation(ctx, id, func(o *Operation) {
			attempt.progress()
			if told != nil {
				told(o.Progress)
			}
		})
		var connection *ConnectionError
		var refused *Problem
		switch {
		case err == nil:
			return end, nil
		case errors.As(err, &refused) && refused.Status == http.StatusNotFound:
			return nil, fmt.Errorf("the server knows no operation %s (imgsrv operations lists them): if it has started anew meanwhile, that has ended unfinished: run its command again", id)
		case errors.As(err, &refused) && refused.retryAfter == 0:
			return nil, err
		case !errors.As(err, &connection) && refused == nil:
			return nil, err
		}
		if err := attempt.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// readOperation follows an operation over one connection.
func (c *Client) readOperation(ctx context.Context, id string, each func(*Operation)) (*Operation, error) {
	watched, moved, stop := c.watch(ctx)
	defer stop()
	r, err := c.request(watched, http.MethodGet, route("api", "operations", id, "events"), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "text/event-stream")
	server := c.base.Scheme + "://" + c.base.Host
	answer, err := c.send(r)
	if err != nil {
		return nil, stalled(ctx, watched, server, err)
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	lines := bufio.NewReaderSize(answer.Body, 64<<10)
	name := ""
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the server ended the stream before the operation's end")
			}
			return nil, stalled(ctx, watched, server, &ConnectionError{Server: server, Err: err})
		}
		moved()
		field, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			var o Operation
			if err := json.Unmarshal([]byte(value), &o); err != nil {
				return nil, fmt.Errorf("operation %s: the answer is not imgsrv's: %w", id, err)
			}
			if name == "end" {
				return &o, nil
			}
			each(&o)
		}
	}
}
