package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"
	"go.yaml.in/yaml/v4"

	"relayd/configs"
)

// Schema returns the JSON Schema of a configuration file. Keys, bounds and defaults are those of the types here, the
// descriptions are the comments of the sample.
func Schema() ([]byte, error) {
	descriptions, err := describe(configs.Sample())
	if err != nil {
		return nil, fmt.Errorf("read the sample's comments: %w", err)
	}
	reflector := &jsonschema.Reflector{
		Anonymous:                  true,
		ExpandedStruct:             true,
		RequiredFromJSONSchemaTags: true,
		FieldNameTag:               "yaml",
		Mapper:                     scalarSchema,
	}
	schema := reflector.Reflect(&Config{})
	schema.Title = "relayd configuration"
	c := Default()
	c.Hostname = "" // another on each machine
	annotate("", schema, reflect.ValueOf(c).Elem(), schema.Definitions, descriptions)
	long := *schema.Definitions["UnknownSender"]
	*schema.Definitions["UnknownSender"] = jsonschema.Schema{
		OneOf: []*jsonschema.Schema{{Const: "reject"}, &long},
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(schema); err != nil {
		return nil, fmt.Errorf("encode the schema: %w", err)
	}
	return out.Bytes(), nil
}

// scalarSchema describes the types of this package that are written as one word or number.
func scalarSchema(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[Size](), reflect.TypeFor[Rate](), reflect.TypeFor[Duration]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Type: "string"}, {Type: "integer"}}}
	case reflect.TypeFor[Date]():
		return &jsonschema.Schema{Type: "string", Format: "date"}
	case reflect.TypeFor[Secret](), reflect.TypeFor[Network]():
		return &jsonschema.Schema{Type: "string"}
	}
	return nil
}

// annotate adds to the properties of schema, which describes v's type, what reflection does not see.
func annotate(path string, schema *jsonschema.Schema, v reflect.Value, definitions jsonschema.Definitions,
	descriptions map[string]string) {
	for f := range v.Type().Fields() {
		name := f.Tag.Get("yaml")
		property, _ := schema.Properties.Get(name)
		key := strings.TrimPrefix(path+"."+name, ".")
		property.Description = descriptions[key]
		if f.Tag.Get("single") != "" {
			words := &jsonschema.Schema{Type: "string"}
			for word := range strings.SplitSeq(f.Tag.Get("enum"), ",") {
				words.Enum = append(words.Enum, word)
			}
			property.Type, property.Items = "", nil
			property.AnyOf = []*jsonschema.Schema{{Type: "string"}, {Type: "array", Items: words}}
			continue
		}
		for word := range strings.SplitSeq(f.Tag.Get("enum"), ",") {
			if word == "" {
				continue
			}
			if f.Type.Kind() == reflect.Slice {
				property.Items.Enum = append(property.Items.Enum, word)
				continue
			}
			property.Enum = append(property.Enum, word)
			if _, err := strconv.ParseFloat(word, 64); err == nil {
				// YAML reads min_tls: 1.2 as a number.
				property.Type, property.Enum = "", append(property.Enum, json.Number(word))
			}
		}
		if f.Type.Kind() == reflect.Int {
			property.Minimum = json.Number(f.Tag.Get("min"))
		}
		value := v.FieldByIndex(f.Index)
		element := f.Type
		if element.Kind() == reflect.Slice {
			element = element.Elem()
		}
		if definition := definitions[element.Name()]; definition != nil {
			if value.Kind() == reflect.Slice {
				value = reflect.New(element).Elem()
			}
			if e, ok := value.Addr().Interface().(interface{ setDefaults() }); ok {
				e.setDefaults()
			}
			annotate(key, definition, value, definitions, descriptions)
		} else if value.Kind() != reflect.Slice && !value.IsZero() {
			property.Default = value.Interface()
			if m, ok := property.Default.(encoding.TextMarshaler); ok {
				text, _ := m.MarshalText()
				property.Default = string(text)
			}
		}
	}
}

// uncomment turns the sample's disabled keys, "#key: value", into keys. Prose has a space behind its "#".
func uncomment(sample []byte) []byte {
	return regexp.MustCompile(`(?m)^( *)#([^ #\n])`).ReplaceAll(sample, []byte("$1$2"))
}

// describe returns the comment above each key of the sample, by the key's path without list indices.
func describe(sample []byte) (map[string]string, error) {
	root, problem := parseYAML("sample", uncomment(sample))
	if problem != nil {
		return nil, &Error{[]Problem{*problem}}
	}
	descriptions := map[string]string{}
	var walk func(path, above string, n *yaml.Node)
	walk = func(path, above string, n *yaml.Node) {
		switch n.Kind {
		case yaml.SequenceNode:
			for _, item := range n.Content {
				walk(path, item.HeadComment, item)
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
				comment := n.Content[i].HeadComment
				if comment == "" && i == 0 {
					comment = above // the comment above "- key:" belongs to the item
				}
				if comment != "" {
					lines := strings.ReplaceAll(strings.TrimPrefix(comment, "# "), "\n# ", " ")
					descriptions[key] = lines
				}
				walk(key, "", n.Content[i+1])
			}
		default: // scalars have nothing below them
		}
	}
	walk("", root.HeadComment, root)
	return descriptions, nil
}
