// Package e2e holds the scenarios: stories in testdata, told with the
// system's own ssh, tmux and browser to a real gateway process, which makes
// real containers in the Docker Engine. One file pins one behaviour, and its
// first lines say which. There is nothing here but tests.
//
// A scenario is a testscript (go doc github.com/rogpeppe/go-internal/testscript)
// with these commands of our own:
//
//	gateway start [KEY=VALUE…]  start `ds01 serve`; keys as in ds01.yaml, dotted; they last for the scenario
//	gateway stop|kill|hup|wait  SIGTERM and wait, SIGKILL and wait, SIGHUP, wait for its own end
//	gateway config [KEY=VALUE…] only write the config
//	gateway grumbles            it may log errors, as this scenario makes it
//	user NAME [FLAG…]           make a key for NAME, `ds01 user add` them, and be them from here on
//	as NAME                     be NAME from here on: ssh uses their key
//	exits CODE PROGRAM ARG…     as exec, with this very exit status
//	silent                      the last program wrote nothing to stderr, save that a launch takes long
//	eventually PROGRAM ARG…     as exec, repeated until it succeeds
//	container OWNER.PROJECT     set $CONTAINER to the engine's ID of the project's container
//	containers N                there are N containers of this scenario's gateways, running or not
//	term …                      a terminal on a person's desk; see term_test.go
//	browser …                   a browser on that desk; see browser_test.go
//	port VARIABLE               set $VARIABLE to a free port of this machine
//	disk DIR SIZE               mount a small disk at DIR
//	image SCRIPT                make an image of the base image by running SCRIPT in it; $IMAGE is its name
//	engine start|stop|kill      an engine of the scenario's own; see docker_test.go
//
// and $REGRESS, where OpenSSH's own regression scripts are, $REGISTRY, a
// registry of images to serve from,
// and these programs: `sql QUERY` prints rows of the gateway's database, and
// `attack NAME …` does what no honest client does (attack_test.go).
package e2e
