package rules

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unguarded lists the functions that start a goroutine without fault.Guard, and
// why a panic cannot come from anybody else's data there.
var unguarded = map[string]string{ // "file function": reason
	"cmd/ds01/serve.go house.close":          "closes our own parts, at the end of the process",
	"cmd/ds01/serve.go house.run":            "each door guards its connections; without a door the process has to end",
	"gateway/server.go Server.Shutdown":      "waits",
	"internal/agent/reaper.go reaper.wait":   "waits",
	"internal/agent/server.go Server.Run":    "accepts, and guards each connection; without that the container has to end",
	"internal/console/server.go Server.wait": "waits",
	"internal/door/pack.go packers.answer":   "is in the process of the person who typed the command",
	"internal/door/screen.go screen.set":     "is in the process of the person who typed the command",
	"keys/store.go NewStore":                 "writes what we have counted",
	"gpu/inventory.go Inventory.Start":       "reads what the driver and /proc say of the GPUs' processes, as numbers",
	"internal/nvml/nvml.go Probe.enter":      "asks the driver",
	"internal/nvml/watch.go Probe.wait":      "asks the driver",
}

// testOnly lists packages that no program of ours has in it.
var testOnly = []string{"internal/bench", "internal/e2e", "internal/rules", "internal/tools", "sessions/sessionstest"}

// TestGuards wants every goroutine to run under fault.Guard: Go ends the whole
// process when one panics, with everybody's connections. A goroutine is what a
// go statement starts, or a method called Go (sync.WaitGroup's), or an AfterFunc
// of more than one statement.
func TestGuards(t *testing.T) {
	used := map[string]bool{}
	for _, name := range files(t) {
		dir := filepath.Dir(name)
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || slices.Contains(testOnly, dir) {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, filepath.Join("..", "..", name), nil, 0)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, decl := range file.Decls {
			where := name + " " + nameOf(decl)
			for _, pos := range startsUnguarded(decl) {
				if used[where] = true; unguarded[where] == "" {
					t.Errorf("%s:%d: %s starts a goroutine that does not run under fault.Guard",
						name, fset.Position(pos).Line, nameOf(decl))
				}
			}
		}
	}
	for where := range unguarded {
		if !used[where] {
			t.Errorf("%s starts no unguarded goroutine any more: take it off the list", where)
		}
	}
}

// TestGuardsFinds wants each way to start a goroutine to be seen.
func TestGuardsFinds(t *testing.T) {
	tests := []struct {
		body string
		want int
	}{
		{`go f()`, 1},
		{`go func() { f() }()`, 1},
		{`go func() { fault.Guard(log, f, nil) }()`, 0},
		{`go func() { defer close(done); fault.Guard(log, f, nil) }()`, 0},
		{`go func() { fault.Guard(log, f, nil); f() }()`, 1},
		{`go func() { defer fault.Guard(log, f, nil) }()`, 1},
		{`go func() { if x { fault.Guard(log, f, nil) } }()`, 1},
		{`go fault.Guard(log, f, nil)`, 0},
		{`work.Go(f)`, 1},
		{`s.work.Go(func() { f() })`, 1},
		{`s.work.Go(func() { fault.Guard(log, f, nil) })`, 0},
		{`fault.Guard(log, func() { go f() }, nil)`, 1},
		{`go func() { fault.Guard(log, func() { go f() }, nil) }()`, 1},
		{`defer context.AfterFunc(ctx, func() { _ = c.Close() })()`, 0},
		{`defer context.AfterFunc(ctx, stop)()`, 0},
		{`time.AfterFunc(d, func() { f(); g() })`, 1},
		{`time.AfterFunc(d, func() { fault.Guard(log, f, nil) })`, 0},
	}
	for _, test := range tests {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc x() {\n"+test.body+"\n}", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(startsUnguarded(file.Decls[0])); got != test.want {
			t.Errorf("%s: %d unguarded; want %d", test.body, got, test.want)
		}
	}
}

// nameOf returns a function's name, with its receiver's type before it.
func nameOf(decl ast.Decl) string {
	f, ok := decl.(*ast.FuncDecl)
	if !ok {
		return "the top"
	}
	if f.Recv == nil {
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	if star, ok := of.(*ast.StarExpr); ok {
		of = star.X
	}
	if of, ok := of.(*ast.Ident); ok {
		return of.Name + "." + f.Name.Name
	}
	return f.Name.Name
}

// startsUnguarded returns where decl starts goroutines without a guard.
func startsUnguarded(decl ast.Decl) (at []token.Pos) {
	ast.Inspect(decl, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			if !isGuard(n.Call) && !isGuarded(n.Call.Fun) {
				at = append(at, n.Pos())
			}
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || len(n.Args) == 0 {
				break
			}
			last := n.Args[len(n.Args)-1]
			if sel.Sel.Name == "Go" && !isGuarded(last) || sel.Sel.Name == "AfterFunc" && !isGuarded(last) && !isShort(last) {
				at = append(at, n.Pos())
			}
		}
		return true
	})
	return at
}

// isGuarded reports whether f is a literal that calls fault.Guard and does
// nothing else, but for what it defers.
func isGuarded(f ast.Expr) bool {
	lit, ok := f.(*ast.FuncLit)
	if !ok {
		return false
	}
	guards := 0
	for _, stmt := range lit.Body.List {
		switch stmt := stmt.(type) {
		case *ast.DeferStmt:
			continue
		case *ast.ExprStmt:
			if call, ok := stmt.X.(*ast.CallExpr); ok && isGuard(call) {
				guards++
				continue
			}
		}
		return false
	}
	return guards > 0
}

func isGuard(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	in, ok := sel.X.(*ast.Ident)
	return ok && in.Name == "fault" && sel.Sel.Name == "Guard"
}

// isShort reports whether f is a function by name, or a literal of one statement.
func isShort(f ast.Expr) bool {
	lit, ok := f.(*ast.FuncLit)
	return !ok || len(lit.Body.List) == 1
}
