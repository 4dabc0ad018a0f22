package credential

import (
	"context"
	"fmt"
	"os"
	"sync"

	"sallyport/protocols"
)

// taken holds what was taken out of the environment: a configuration that is loaded again names the same variables, and
// two targets may name one.
var taken struct {
	sync.Mutex
	secrets map[string]protocols.Secret
}

// fromEnvironment takes a variable out of the environment. What the kernel copied for the process when it started stays
// in /proc/PID/environ for root and for who may trace the process; a file or a credential of systemd does not.
func fromEnvironment(name string) (func(context.Context) (protocols.Secret, error), error) {
	taken.Lock()
	defer taken.Unlock()
	if value, ok := os.LookupEnv(name); ok {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("environment variable %s: cannot remove it", name)
		}
		if len(value) > MaxSecret {
			return nil, fmt.Errorf("environment variable %s: larger than %d bytes", name, MaxSecret)
		}
		secret, err := checked([]byte(value))
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", name, err)
		}
		if taken.secrets == nil {
			taken.secrets = make(map[string]protocols.Secret)
		}
		taken.secrets[name] = secret
	}
	secret, ok := taken.secrets[name]
	if !ok {
		return nil, fmt.Errorf("environment variable %s: not set", name)
	}
	return func(context.Context) (protocols.Secret, error) { return secret, nil }, nil
}
