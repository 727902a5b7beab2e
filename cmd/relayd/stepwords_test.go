package main

import (
	"io/fs"
	"testing"

	"go.yaml.in/yaml/v4"

	"relayd/pkg/admin/page/enrol"
	"relayd/pkg/exchange/doctor"
)

// The page has a word for each step that doctor examines. Neither may know the other, and a step without a word is shown by its
// name in every language.
func TestStepWords(t *testing.T) {
	data, err := fs.ReadFile(enrol.Files(), "words/enrol.yaml")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]map[string]string{}
	if err := yaml.Unmarshal(data, &words); err != nil {
		t.Fatal(err)
	}
	for _, name := range doctor.Names() {
		if words["enrol.step."+name]["ja"] == "" {
			t.Errorf("there is no word for the step %s", name)
		}
	}
}
