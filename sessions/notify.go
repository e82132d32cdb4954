package sessions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

const (
	notifiers    = 4                // warnings that are on their way at once
	maxWarnings  = 256              // that wait for that; what is more is not sent
	webhookTime  = 5 * time.Second  // for one attempt
	webhookAgain = 2 * time.Second  // until the second, and last
	notifyTime   = 10 * time.Second // for the command
	maxComplaint = 1 << 10          // bytes of what it says that is wrong
)

// A warning is what a site's webhook and command are told before a session ends.
type warning struct {
	Kind    string    `json:"kind"` // session.warned
	Session string    `json:"session"`
	Project string    `json:"project"`
	Owner   string    `json:"owner"`
	Holder  string    `json:"holder"` // whom it counts for, which is the owner unless they only read
	Retires time.Time `json:"retires"`
	Left    int       `json:"left"` // seconds until then
	Reason  string    `json:"reason"`
	Text    string    `json:"text"`
}

// notify has w sent to whoever the site has named. It never waits.
func (m *Manager) notify(w warning) {
	if n := m.Config().Notify; n.Webhook == "" && len(n.Command) == 0 {
		return
	}
	select {
	case m.warnings <- w:
	default:
		m.Log.Error("too many warnings wait to be sent; this one is not", "session", w.Session, "project", w.Owner+"."+w.Project)
	}
}

// notifier sends warnings, one after the other. Whoever does not take one costs
// that one alone: people have been told by then.
func (m *Manager) notifier() {
	for {
		select {
		case w := <-m.warnings:
			m.send(m.Config().Notify, w)
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Manager) send(to config.Notify, w warning) {
	text, err := json.Marshal(w)
	if err != nil {
		m.Log.Error("a warning that cannot be written", "session", w.Session, "err", err)
		return
	}
	log := m.Log.With("session", w.Session, "project", w.Owner+"."+w.Project)
	var both sync.WaitGroup
	if to.Webhook != "" {
		both.Go(func() {
			fault.Guard(log, func() {
				err := post(m.ctx, to.Webhook, text)
				if err != nil && m.pause(webhookAgain) {
					err = post(m.ctx, to.Webhook, text)
				}
				if err != nil {
					log.Warn("notify.webhook was not told that a session ends", "err", err)
				}
			}, nil)
		})
	}
	if len(to.Command) > 0 {
		both.Go(func() {
			fault.Guard(log, func() {
				if err := m.runNotify(to, w, text); err != nil {
					log.Warn("notify.command was not told that a session ends", "err", err)
				}
			}, nil)
		})
	}
	both.Wait()
}

// webhooks keeps no connection open for a warning now and then, and is not sent
// elsewhere.
var webhooks = &http.Client{
	Timeout:       webhookTime,
	Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// post sends text to address, which may hold a secret, and is in no error.
func post(ctx context.Context, address string, text []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(text))
	if err != nil {
		return errors.New("it is no address")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "ds01")
	res, err := webhooks.Do(req)
	if f, ok := errors.AsType[*url.Error](err); ok {
		return f.Err
	}
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10)
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("it answers %s", res.Status)
	}
	return nil
}

// runNotify runs the site's command. w is in its environment, and text on its
// standard input.
func (m *Manager) runNotify(to config.Notify, w warning, text []byte) error {
	ctx, cancel := context.WithTimeoutCause(m.ctx, notifyTime, fmt.Errorf("it has not ended in %v", notifyTime))
	defer cancel()
	cmd, err := m.CommandAs(ctx, to.Command, to.CommandUser)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, w.environ()...)
	var complaint head
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &complaint
	err = cmd.Run()
	switch said := strings.TrimSpace(string(complaint)); {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && said != "":
		return fmt.Errorf("%w: %.200q", err, said)
	}
	return err
}

// environ is w in variables.
func (w warning) environ() []string {
	return []string{
		"DS01_KIND=" + w.Kind, "DS01_SESSION=" + w.Session, "DS01_PROJECT=" + w.Project, "DS01_OWNER=" + w.Owner,
		"DS01_HOLDER=" + w.Holder, "DS01_RETIRES=" + w.Retires.Format(time.RFC3339), "DS01_LEFT=" + strconv.Itoa(w.Left),
		"DS01_REASON=" + w.Reason, "DS01_TEXT=" + w.Text,
	}
}

// A head keeps the first maxComplaint bytes of what is written.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), maxComplaint-len(*h))]...)
	return len(p), nil
}
