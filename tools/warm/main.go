package main
import ( _ "cel.dev/cel-go/cel"; _ "cel.dev/cel-go/ext"; _ "github.com/pganalyze/pg_query_go/v6"; _ "modernc.org/sqlite"; _ "github.com/klauspost/compress/zstd"; _ "golang.org/x/mod/sumdb/tlog"; _ "golang.org/x/mod/sumdb/note"; _ "github.com/jackc/pgx/v5"; _ "github.com/lib/pq"; _ "github.com/jackc/pgproto3/v2"; _ "github.com/spf13/cobra"; _ "github.com/vishvananda/netlink"; _ "github.com/hashicorp/go-hclog"; _ "github.com/BurntSushi/toml"; _ "github.com/google/uuid"; _ "github.com/elastic/go-seccomp-bpf"; _ "github.com/cilium/ebpf/link")
func main(){}
