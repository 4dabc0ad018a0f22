package credential

import (
	"fmt"
	"os"
	"sync"

	"sallyport/protocols"
)

// taken are variables that were taken out of the environment: a configuration that is read again names them again.
var taken struct {
	mu sync.Mutex
	of map[string]protocols.Secret // guarded by mu
}

// takeEnv returns a variable and removes it, so that no child process inherits it.
func takeEnv(name string) (protocols.Secret, error) {
	taken.mu.Lock()
	defer taken.mu.Unlock()
	if value, ok := os.LookupEnv(name); ok {
		secret, err := clean([]byte(value), "$"+name)
		if err != nil {
			return "", err
		}
		if taken.of == nil {
			taken.of = make(map[string]protocols.Secret)
		}
		taken.of[name] = secret
		if err := os.Unsetenv(name); err != nil {
			return "", fmt.Errorf("credential: take $%s out of the environment: %w", name, err)
		}
	}
	if secret, ok := taken.of[name]; ok {
		return secret, nil
	}
	return "", fmt.Errorf("credential: there is no $%s", name)
}
