package policy

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// maxFile bounds a configuration file. 4 MiB is some fifty thousand rules.
const maxFile = 4 << 20

// A Pos is where a table of the configuration stands.
type Pos struct {
	File string
	Line int

	keys map[string]place
}

// At returns where a key of the table is, or the table itself if the key is not there.
func (p Pos) At(key string) Pos {
	if at, ok := p.keys[key]; ok {
		return Pos{File: p.File, Line: at.key}
	}
	return Pos{File: p.File, Line: p.Line}
}

// Has reports whether the file sets a key of the table.
func (p Pos) Has(key string) bool {
	_, ok := p.keys[key]
	return ok
}

func (p Pos) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// MarshalJSON leaves positions out of what a configuration says.
func (Pos) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// An Error is one thing wrong with a configuration.
type Error struct {
	Pos     Pos
	Message string
}

func (e *Error) Error() string { return e.Pos.String() + ": " + e.Message }

// Errors is all that is wrong with a configuration, in the order of lines.
type Errors []*Error

func (e Errors) Error() string {
	text := make([]string, len(e))
	for i, err := range e {
		text[i] = err.Error()
	}
	return strings.Join(text, "\n")
}

func (e *Errors) add(at Pos, format string, args ...any) {
	*e = append(*e, &Error{Pos: Pos{File: at.File, Line: at.Line}, Message: fmt.Sprintf(format, args...)})
}

// err returns nil if there are none.
func (e Errors) err() error {
	if len(e) == 0 {
		return nil
	}
	slices.SortStableFunc(e, func(a, b *Error) int { return a.Pos.Line - b.Pos.Line })
	return e
}

// unmarshal reads TOML into a struct. Fields are named by their `toml` tags; a key that has none is an error, and so is
// a value of another type than its field's. A field named Pos of a table is set to where the table is. Values of
// elements start from what their defaults method sets.
func unmarshal(file string, data []byte, into any) error {
	if len(data) > maxFile {
		return Errors{{Pos{File: file, Line: 1}, fmt.Sprintf("the file has more than %d bytes", maxFile)}}
	}
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		var bad toml.ParseError
		if errors.As(err, &bad) {
			return Errors{{Pos{File: file, Line: max(1, bad.Position.Line)}, bad.Message}}
		}
		return Errors{{Pos{File: file, Line: 1}, err.Error()}}
	}
	d := &decoder{file: file, at: lines(string(data))}
	d.table("", doc, reflect.ValueOf(into).Elem())
	return d.errs.err()
}

type decoder struct {
	file string
	at   map[string]place
	errs Errors
}

func (d *decoder) fail(path, format string, args ...any) {
	d.errs.add(Pos{File: d.file, Line: d.find(path).key}, format, args...)
}

// find returns the place of a path, or of the nearest thing around it that has one.
func (d *decoder) find(path string) place {
	for path != "" {
		if at, ok := d.at[path]; ok {
			return at
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return place{key: 1, value: 1}
}

func (d *decoder) table(path string, from map[string]any, into reflect.Value) {
	fields := keysOf(into.Type())
	pos := Pos{File: d.file, Line: d.find(path).key, keys: make(map[string]place, len(from))}
	for _, key := range slices.Sorted(maps.Keys(from)) {
		here := join(path, key)
		pos.keys[key] = d.find(here)
		if i, known := fields[key]; known {
			d.value(here, from[key], into.Field(i))
		} else if secretKeys.MatchString(d.label(here)) {
			d.fail(here, "%s", noSecrets)
		} else {
			d.fail(here, "unknown key %q %s: %s", key, d.where(path), suggest(key, slices.Sorted(maps.Keys(fields))))
		}
	}
	if at := into.FieldByName("Pos"); at.IsValid() {
		at.Set(reflect.ValueOf(pos))
	}
}

// A secret in the configuration would be in backups, in version control and in everybody's editor.
const noSecrets = `a secret does not belong in this file: write password = { file = "…" }, { env = "…" } or { command = ["…"] }`

var secretKeys = regexp.MustCompile(`login\.password\.(value|secret|password|plain)\]$`)

func (d *decoder) value(path string, from any, into reflect.Value) {
	if into.Kind() == reflect.Pointer {
		into.Set(reflect.New(into.Type().Elem()))
		into = into.Elem()
	}
	if u, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if text, ok := from.(string); !ok {
			d.mismatch(path, from, "a string")
		} else if err := u.UnmarshalText([]byte(text)); err != nil {
			d.fail(path, "%s: %v", d.short(path), err)
		}
		return
	}
	switch to := into.Addr().Interface().(type) {
	case *time.Duration:
		text, ok := from.(string)
		if !ok {
			d.mismatch(path, from, `a duration in quotes, such as "45s"`)
		} else if v, err := time.ParseDuration(text); err != nil {
			d.fail(path, `%s: %q is no duration such as "45s", "10m" or "1h30m"`, d.short(path), clip(text))
		} else if v < 0 {
			d.fail(path, "%s: a duration below zero", d.short(path))
		} else {
			*to = v
		}
		return
	case *map[string]any:
		if v, ok := from.(map[string]any); !ok {
			d.mismatch(path, from, "a table")
		} else if !finite(v) {
			d.fail(path, "%s: a number here is infinite or not a number", d.short(path))
		} else {
			*to = v
		}
		return
	}
	switch into.Kind() {
	case reflect.String:
		if v, ok := from.(string); ok {
			into.SetString(v)
			return
		}
		d.mismatch(path, from, "a string")
	case reflect.Bool:
		if v, ok := from.(bool); ok {
			into.SetBool(v)
			return
		}
		d.mismatch(path, from, "true or false")
	case reflect.Int:
		if v, ok := from.(int64); !ok {
			d.mismatch(path, from, "a whole number")
		} else if v < math.MinInt32 || v > math.MaxInt32 {
			d.fail(path, "%s: the number is out of range", d.short(path))
		} else {
			into.SetInt(v)
		}
	case reflect.Struct:
		if v, ok := from.(map[string]any); ok {
			d.table(path, v, into)
		} else if strings.HasSuffix(d.label(path), "login.password]") {
			d.fail(path, "%s", noSecrets)
		} else {
			d.mismatch(path, from, "a table")
		}
	case reflect.Slice:
		d.array(path, from, into)
	default:
		panic("policy: no way to decode into " + into.Type().String())
	}
}

func (d *decoder) array(path string, from any, into reflect.Value) {
	var elements []any
	switch v := from.(type) {
	case []any:
		elements = v
	case []map[string]any:
		for _, element := range v {
			elements = append(elements, element)
		}
	default:
		if elem := into.Type().Elem(); elem.Kind() == reflect.Struct && !reflect.PointerTo(elem).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			d.mismatch(path, from, "a list of tables: write [["+strings.Trim(d.label(path), "[]")+"]]")
		} else {
			d.mismatch(path, from, "a list in brackets")
		}
		return
	}
	out := reflect.MakeSlice(into.Type(), len(elements), len(elements))
	for i, element := range elements {
		if v, ok := out.Index(i).Addr().Interface().(interface{ defaults() }); ok {
			v.defaults()
		}
		d.value(fmt.Sprintf("%s[%d]", path, i), element, out.Index(i))
	}
	into.Set(out)
}

// mismatch never shows the value: it may be a secret in the wrong place.
func (d *decoder) mismatch(path string, from any, want string) {
	have := fmt.Sprintf("%T", from)
	switch from.(type) {
	case string:
		have = "a string"
	case int64:
		have = "a whole number"
	case float64:
		have = "a fraction"
	case bool:
		have = "true or false"
	case time.Time:
		have = "a date or time"
	case map[string]any:
		have = "a table"
	case []any, []map[string]any:
		have = "a list"
	}
	d.fail(path, "%s: want %s, have %s", d.short(path), want, have)
}

var index = regexp.MustCompile(`\[\d+\]`)

func (d *decoder) where(path string) string {
	if path == "" {
		return "at the top of the file"
	}
	return "in " + d.label(path)
}

// label is how the table or key at a path is written in the file: "[[target.rule]]", "[daemon]".
func (d *decoder) label(path string) string {
	name := index.ReplaceAllString(path, "")
	if strings.HasSuffix(path, "]") {
		return "[[" + name + "]]"
	}
	return "[" + name + "]"
}

// short is the last part of a path, without indices.
func (d *decoder) short(path string) string {
	name := index.ReplaceAllString(path, "")
	return name[strings.LastIndexByte(name, '.')+1:]
}

// keysOf returns the keys that a table of type t may have, and the fields that they go to.
func keysOf(t reflect.Type) map[string]int {
	keys := make(map[string]int)
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("toml"); name != "" {
			keys[name] = i
		}
	}
	return keys
}

func finite(v any) bool {
	switch v := v.(type) {
	case float64:
		return !math.IsNaN(v) && !math.IsInf(v, 0)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !finite(e) })
	case []map[string]any:
		return !slices.ContainsFunc(v, func(e map[string]any) bool { return !finite(e) })
	case map[string]any:
		for _, e := range v {
			if !finite(e) {
				return false
			}
		}
	}
	return true
}
