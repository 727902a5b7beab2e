package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"relayd/configs"
)

// The committed schema, which editors are pointed at, is the one the program prints.
func TestSchemaIsUpToDate(t *testing.T) {
	schema, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../docs/relayd.schema.json", string(schema))
}

func readSchema(t *testing.T) map[string]any {
	t.Helper()
	data, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

// violations returns what of value the schema does not allow; it knows the few keywords Schema uses.
func violations(root, schema map[string]any, path string, value any) (found []string) {
	if ref, ok := schema["$ref"].(string); ok {
		definition := root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		found = append(found, violations(root, definition, path, value)...)
	}
	for _, keyword := range []string{"anyOf", "oneOf"} {
		if branches, ok := schema[keyword].([]any); ok {
			fits := slices.ContainsFunc(branches, func(b any) bool {
				return violations(root, b.(map[string]any), path, value) == nil
			})
			if !fits {
				found = append(found, path+" fits no branch")
			}
		}
	}
	if c, ok := schema["const"]; ok && c != value {
		found = append(found, path+" is not the constant")
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, value) {
		found = append(found, fmt.Sprintf("%s: %v is not in the enumeration", path, value))
	}
	kind := map[bool]string{}
	switch v := value.(type) {
	case map[string]any:
		kind[true] = "object"
		properties, _ := schema["properties"].(map[string]any)
		for key, child := range v {
			if property, known := properties[key].(map[string]any); known {
				found = append(found, violations(root, property, path+"."+key, child)...)
			} else if schema["additionalProperties"] == false {
				found = append(found, path+"."+key+" is unknown")
			}
		}
		required, _ := schema["required"].([]any)
		for _, key := range required {
			if _, given := v[key.(string)]; !given {
				found = append(found, path+"."+key.(string)+" is missing")
			}
		}
	case []any:
		kind[true] = "array"
		items, _ := schema["items"].(map[string]any)
		for _, item := range v {
			found = append(found, violations(root, items, path, item)...)
		}
	case string:
		kind[true] = "string"
	case bool:
		kind[true] = "boolean"
	case float64:
		kind[true] = "integer"
		if least, ok := schema["minimum"].(float64); ok && v < least {
			found = append(found, path+" is too small")
		}
	}
	if want, ok := schema["type"].(string); ok && want != kind[true] {
		found = append(found, fmt.Sprintf("%s is %s, not %s", path, kind[true], want))
	}
	return found
}

// asJSON returns a YAML document as an editor's schema check sees it.
func asJSON(t *testing.T, text string) any {
	t.Helper()
	var value any
	if err := yaml.Load([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := json.Unmarshal(data, &plain); err != nil {
		t.Fatal(err)
	}
	return plain
}

func TestSchemaAllowsWhatLoads(t *testing.T) {
	schema := readSchema(t)
	full := strings.Replace(string(uncomment(configs.Sample())), "unknown_sender: reject\n", "", 1)
	// An editor would read the date as one; JSON has none.
	full = strings.Replace(full, "2027-03-31\n", `"2027-03-31"`+"\n", 1)
	for name, text := range map[string]string{"six lines": sixLines, "sample": string(configs.Sample()), "full": full} {
		if found := violations(schema, schema, "", asJSON(t, text)); found != nil {
			t.Errorf("%s: %v", name, found)
		}
	}
}

func TestSchemaRefusesWhatDoesNotLoad(t *testing.T) {
	schema := readSchema(t)
	for text, want := range map[string]string{
		"{}":                        ".listeners is missing",
		"{listeners: [], nats: {}}": ".nats is unknown",
		"{listeners: [{address: ':1', adress: x}]}":        ".listeners.adress is unknown",
		"{listeners: [{tls: none}]}":                       ".listeners.address is missing",
		"{listeners: [{address: ':1', tls: startls}]}":     ".listeners.tls: startls is not in the enumeration",
		"{listeners: [{address: ':1', min_tls: 1.4}]}":     ".listeners.min_tls: 1.4 is not in the enumeration",
		"{listeners: [], limits: {hops: 0}}":               ".limits.hops is too small",
		"{listeners: [], limits: 1}":                       ".limits is integer, not object",
		"{listeners: [], unknown_sender: bounce}":          ".unknown_sender fits no branch",
		"{listeners: [], queue: {lifetime: [1]}}":          ".queue.lifetime fits no branch",
		"{listeners: [], senders: [{address: a@b, x: 1}]}": ".senders.x is unknown .senders.tenant is missing",
	} {
		found := violations(schema, schema, "", asJSON(t, text))
		if got := strings.Join(found, " "); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestSchemaDescribesEveryKey(t *testing.T) {
	data, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	descriptions, err := describe(configs.Sample())
	if err != nil {
		t.Fatal(err)
	}
	for key, text := range descriptions {
		quoted := strings.ReplaceAll(text, `"`, `\"`)
		if !strings.Contains(string(data), `"`+quoted+`"`) {
			t.Errorf("the schema lacks the description of %s", key)
		}
		if strings.Contains(text, "#") || strings.Contains(text, "\n") {
			t.Errorf("the description of %s is not plain prose: %q", key, text)
		}
	}
}

func TestUncomment(t *testing.T) {
	const sample = "# prose\n#key: 1\n  #- item: 2\n    #more: 3\n    # prose: not a key\nplain: 4 # a: b\n#\n##x\n"
	const want = "# prose\nkey: 1\n  - item: 2\n    more: 3\n    # prose: not a key\nplain: 4 # a: b\n#\n##x\n"
	if got := string(uncomment([]byte(sample))); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
