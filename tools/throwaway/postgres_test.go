package throwaway

import (
	"os"
	"testing"
)

func TestAServerStartsAnswersAndLeavesNothing(t *testing.T) {
	p, err := StartPostgres()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Query("postgres", "select 6 * 7"); got != "42" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.Dir); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}
