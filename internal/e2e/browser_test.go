package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

const browserUsage = `usage:
browser open URL          start a browser with this page
browser click SELECTOR    wait for the element and click into the middle of it
browser type TEXT         type TEXT
browser press KEY         press a key, perhaps with others held: Control+S
browser wait REGEXP       wait until the page's text has it; (?m) is on
browser close             close it, as people close a window`

// browsers are those that will do, the best first.
var browsers = []string{"chromium-headless-shell", "chromium", "google-chrome"}

// findBrowser returns the path of the browser to use.
func findBrowser() (string, error) {
	for _, name := range browsers {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no browser: none of %s", strings.Join(browsers, ", "))
}

// A browser is a chromium without a window. It is led over its DevTools
// protocol, through a pipe: no port that others could take, and the browser
// ends by itself when the test does.
type browser struct {
	cmd     *exec.Cmd
	done    chan struct{} // closed when it has ended
	to      *os.File
	from    *os.File
	answers *bufio.Reader // from
	calls   int
	session string // its one page
}

func cmdBrowser(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("%s", browserUsage)
	}
	verb, args := args[0], args[1:]
	switch {
	case verb == "open" && len(args) == 1 && w.browser == nil:
		var err error
		w.browser, err = startBrowser(w.work)
		ts.Check(err)
		ts.Check(w.browser.open(args[0]))
	case w.browser == nil:
		ts.Fatalf("no browser is open")
	case verb == "click" && len(args) == 1:
		w.browser.check(ts, w.browser.click(args[0]))
	case verb == "type" && len(args) == 1:
		w.browser.check(ts, w.browser.typeText(args[0]))
	case verb == "press" && len(args) == 1:
		w.browser.check(ts, w.browser.press(args[0]))
	case verb == "wait" && len(args) == 1:
		w.browser.check(ts, w.browser.wait(args[0]))
	case verb == "close" && len(args) == 0:
		err := w.browser.close()
		w.browser = nil
		ts.Check(err)
	default:
		ts.Fatalf("%s", browserUsage)
	}
}

// pagePatience is how long a page may take: an editor is 15 MB of JavaScript.
const pagePatience = 2 * patience

// startBrowser starts a browser with a profile of its own in dir. It finds no
// host but this one: what a page wants from the internet is not there, here or
// anywhere else.
func startBrowser(dir string) (*browser, error) {
	program, err := findBrowser()
	if err != nil {
		return nil, err
	}
	fromUs, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer fromUs.Close()
	from, toUs, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	defer toUs.Close()
	b := &browser{done: make(chan struct{}), to: to, from: from, answers: bufio.NewReader(from)}
	b.cmd = exec.Command(program, "--headless", "--remote-debugging-pipe", "--no-sandbox", // root has none
		"--user-data-dir="+dir+"/browser", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		// What would be drawn with WebGL is in the page as text instead, to be read.
		"--disable-3d-apis", "--force-prefers-reduced-motion", "--window-size=1280,800")
	b.cmd.ExtraFiles = []*os.File{fromUs, toUs}             // 3 and 4, by the protocol
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it is many processes
	log, err := os.Create(dir + "/browser.log")
	if err != nil {
		return nil, errors.Join(err, to.Close(), from.Close())
	}
	defer log.Close()
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		return nil, errors.Join(err, to.Close(), from.Close())
	}
	go func() { _ = b.cmd.Wait(); close(b.done) }() // how it ends does not matter
	return b, nil
}

// close asks the browser to end, and ends what then is left.
func (b *browser) close() error {
	_ = b.call("Browser.close", nil, nil) // it may be gone before it answers
	_ = b.to.Close()
	_ = b.from.Close()
	var err error
	select {
	case <-b.done:
	case <-time.After(patience):
		err = fmt.Errorf("the browser still runs after %v", patience)
	}
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	<-b.done
	return err
}

// call calls a method of the page, or of the browser while there is no page,
// and waits for its answer. Messages end with a zero byte.
func (b *browser) call(method string, params, result any) error {
	b.calls++
	call := map[string]any{"id": b.calls, "method": method}
	if params != nil {
		call["params"] = params
	}
	if b.session != "" && !strings.HasPrefix(method, "Browser.") {
		call["sessionId"] = b.session
	}
	message, err := json.Marshal(call)
	if err != nil {
		return err
	}
	if _, err := b.to.Write(append(message, 0)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if err := b.from.SetReadDeadline(time.Now().Add(pagePatience)); err != nil {
		return err
	}
	for {
		message, err := b.answers.ReadBytes(0)
		if err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		var answer struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(message[:len(message)-1], &answer); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case answer.ID != b.calls: // an event
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error.Message)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Result, result)
		}
	}
}

// open opens the browser's page.
func (b *browser) open(url string) error {
	var target struct{ TargetID string }
	if err := b.call("Target.createTarget", map[string]any{"url": url}, &target); err != nil {
		return err
	}
	var attached struct{ SessionID string }
	err := b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	return err
}

// eval sets value to what a JavaScript expression is in the page.
func (b *browser) eval(expression string, value any) error {
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	err := b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &got)
	switch {
	case err != nil:
		return err
	case got.ExceptionDetails != nil:
		return errors.New(got.ExceptionDetails.Exception.Description)
	}
	return json.Unmarshal(got.Result.Value, value)
}

// click waits until the element is to be seen with nothing before it.
func (b *browser) click(selector string) error {
	var at []float64
	var err error
	ok := until(pagePatience, func() bool {
		err = b.eval(fmt.Sprintf(`(() => {
			const e = document.querySelector(%q), r = e?.getBoundingClientRect();
			const x = r?.x + r?.width / 2, y = r?.y + r?.height / 2;
			return e?.contains(document.elementFromPoint(x, y)) ? [x, y] : [];
		})()`, selector), &at)
		return len(at) == 2 || err != nil
	})
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("the page shows no %s", selector)
	}
	for _, event := range []string{"mousePressed", "mouseReleased"} {
		params := map[string]any{"type": event, "x": at[0], "y": at[1], "button": "left", "clickCount": 1}
		if err := b.call("Input.dispatchMouseEvent", params, nil); err != nil {
			return err
		}
	}
	return nil
}

func (b *browser) typeText(text string) error {
	for _, char := range text {
		if err := b.key(map[string]any{"key": string(char), "text": string(char)}); err != nil {
			return err
		}
	}
	return nil
}

// key presses a key and lets it go.
func (b *browser) key(params map[string]any) error {
	for _, event := range []string{"keyDown", "keyUp"} {
		params["type"] = event
		if err := b.call("Input.dispatchKeyEvent", params, nil); err != nil {
			return err
		}
		delete(params, "text")
	}
	return nil
}

// held are the keys to hold, as the bits of the protocol.
var held = map[string]int{"Alt": 1, "Control": 2, "Shift": 8}

// named are keys other than letters: what the page is told, and the number
// that Windows has for it, which pages go by.
var named = map[string]struct {
	code, text string
	number     int
}{
	"Enter": {"Enter", "\r", 13},
	"End":   {"End", "", 35},
	"`":     {"Backquote", "", 192},
}

func (b *browser) press(chord string) error {
	keys := strings.Split(chord, "+")
	key := keys[len(keys)-1]
	modifiers := 0
	for _, name := range keys[:len(keys)-1] {
		if held[name] == 0 {
			return fmt.Errorf("%s: cannot hold %s", chord, name)
		}
		modifiers |= held[name]
	}
	params := map[string]any{"key": key, "modifiers": modifiers}
	if k, ok := named[key]; ok {
		params["code"], params["windowsVirtualKeyCode"] = k.code, k.number
		if k.text != "" {
			params["text"] = k.text
		}
	} else if len(key) == 1 && 'A' <= key[0] && key[0] <= 'Z' {
		params["key"] = strings.ToLower(key)
		params["code"], params["windowsVirtualKeyCode"] = "Key"+key, key[0]
	} else {
		return fmt.Errorf("%s: no such key", chord)
	}
	return b.key(params)
}

// text is what the page shows.
func (b *browser) text() (text string, err error) {
	err = b.eval(`document.body ? document.body.innerText : ""`, &text)
	return strings.ReplaceAll(text, "\u00a0", " "), err
}

func (b *browser) wait(pattern string) error {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return err
	}
	ok := until(pagePatience, func() bool {
		var text string
		text, err = b.text()
		return err != nil || re.MatchString(text)
	})
	if err == nil && !ok {
		err = fmt.Errorf("the page does not say %q", pattern)
	}
	return err
}

// check fails the scenario for err, and says what the page shows. A picture
// of it stays with the scenario's other files under -testwork.
func (b *browser) check(ts *testscript.TestScript, err error) {
	if err == nil {
		return
	}
	var picture struct{ Data string }
	if b.call("Page.captureScreenshot", nil, &picture) == nil {
		png, _ := base64.StdEncoding.DecodeString(picture.Data)
		ts.Check(os.WriteFile(ts.MkAbs("browser.png"), png, 0o600))
	}
	text, _ := b.text()
	ts.Fatalf("%v; the page:\n%s", err, text)
}
