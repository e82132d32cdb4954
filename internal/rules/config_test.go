package rules

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01/internal/config"
)

const sample = "../../etc/ds01.yaml"

// TestSampleConfig wants etc/ds01.yaml to be the defaults, all of them, so that
// an operator can read there what holds.
func TestSampleConfig(t *testing.T) {
	got, err := config.Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Workspaces = "/srv/ds01/workspaces/{owner}/{project}" // the one setting without a default
	g, w := reflect.ValueOf(*got), reflect.ValueOf(*want)
	for i := range g.NumField() {
		field := g.Type().Field(i)
		if g.Field(i).Kind() == reflect.Map && g.Field(i).Len()+w.Field(i).Len() == 0 {
			continue // written {} and left out are the same
		}
		if !reflect.DeepEqual(g.Field(i).Interface(), w.Field(i).Interface()) {
			t.Errorf("%s: etc/ds01.yaml says %v; the default is %v", field.Name, g.Field(i), w.Field(i))
		}
	}

	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	var written map[string]any
	if err := yaml.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	wantSettings(t, g.Type(), written, "")
}

// wantSettings complains of each setting of struct type s that is not in
// written; under is its place in the file.
func wantSettings(t *testing.T, s reflect.Type, written map[string]any, under string) {
	for i := range s.NumField() {
		name, _, _ := strings.Cut(s.Field(i).Tag.Get("yaml"), ",")
		value, ok := written[name]
		if !ok {
			t.Errorf("%s%s is not in etc/ds01.yaml", under, name)
			continue
		}
		if inner, ok := value.(map[string]any); ok && s.Field(i).Type.Kind() == reflect.Struct {
			wantSettings(t, s.Field(i).Type, inner, under+name+".")
		}
	}
}
