package console

import (
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// whyJSON is a session with what decides about its end.
type whyJSON struct {
	sessionJSON
	Signals   []signalJSON   `json:"signals"`
	Deadlines []deadlineJSON `json:"deadlines"`
}

// signalJSON is one thing that was looked at.
type signalJSON struct {
	Name    string `json:"name"`
	Value   string `json:"value"`   // for people
	Verdict string `json:"verdict"` // works, idle, unknown, or "" if it is none of them
}

// deadlineJSON is one reason why a session may end by itself.
type deadlineJSON struct {
	Name      string     `json:"name"`
	Limit     float64    `json:"limit"` // seconds
	Since     *time.Time `json:"since"`
	At        *time.Time `json:"at"`
	Why       string     `json:"why"`
	Announced bool       `json:"announced"` // it will not come any closer
}

// showWhy shows a live session with all that decides about its end.
func (c *call) showWhy(s sessions.Session) error {
	why, err := c.Sessions.Why(c.ctx, s.ID)
	if err != nil {
		return err
	}
	now := time.Now()
	j := whyJSON{sessionJSON: c.sessionJSON(s), Signals: []signalJSON{}, Deadlines: []deadlineJSON{}}
	fields := c.sessionFields(s, j.sessionJSON)
	for _, one := range why.Signals {
		j.Signals = append(j.Signals, signalJSON{one.Name, one.Value, string(one.Verdict)})
		text := one.Value
		if one.Verdict != "" {
			text += " (" + string(one.Verdict) + ")"
		}
		fields = append(fields, field{"signal " + one.Name, text})
	}
	for _, d := range why.Deadlines {
		j.Deadlines = append(j.Deadlines, deadlineJSON{d.Name, d.Limit.Seconds(), stamp(d.Since), stamp(d.At), d.Why, d.Announced})
		text := d.Why + ", for " + config.Duration(max(now.Sub(d.Since), time.Second).Round(time.Second)).String() + " now: ends it " + until(d.At, now)
		if d.Announced {
			text += ", as announced"
		}
		fields = append(fields, field{"clock " + d.Name, text})
	}
	return c.show(j, fields...)
}
