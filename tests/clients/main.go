// Go's own client of etcd and its recipes (session, mutex, election, transactional memory) against the endpoint that is
// the only argument. Says a line for each that works, and fails with the first that does not.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	client := dial()
	defer client.Close()
	recipes := []struct {
		name string
		run  func(context.Context, *clientv3.Client) error
	}{
		{"mutex", mutex}, {"election", election}, {"memory", memory}, {"session", session}, {"watch", watch},
	}
	for _, recipe := range recipes {
		if err := recipe.run(ctx, client); err != nil {
			log.Fatalf("%s: %v", recipe.name, err)
		}
		fmt.Println("ok", recipe.name)
	}
}

func dial() *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:2], DialTimeout: 10 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	return client
}

// Eight sessions of clients of their own count under one mutex, without a transaction: only the mutex keeps them right.
func mutex(ctx context.Context, client *clientv3.Client) error {
	const workers, rounds = 8, 10
	failures := make(chan error, workers)
	var group sync.WaitGroup
	for range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			failures <- count(ctx, rounds)
		}()
	}
	group.Wait()
	for range workers {
		if err := <-failures; err != nil {
			return err
		}
	}
	answer, err := client.Get(ctx, "count")
	if err != nil {
		return err
	}
	if got := string(answer.Kvs[0].Value); got != strconv.Itoa(workers*rounds) {
		return fmt.Errorf("counted %s", got)
	}
	return nil
}

func count(ctx context.Context, rounds int) error {
	client := dial()
	defer client.Close()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	defer session.Close()
	lock := concurrency.NewMutex(session, "/lock")
	for range rounds {
		if err := lock.Lock(ctx); err != nil {
			return err
		}
		answer, err := client.Get(ctx, "count")
		if err != nil {
			return err
		}
		value := 0
		if len(answer.Kvs) > 0 {
			if value, err = strconv.Atoi(string(answer.Kvs[0].Value)); err != nil {
				return err
			}
		}
		if _, err := client.Put(ctx, "count", strconv.Itoa(value+1)); err != nil {
			return err
		}
		if err := lock.Unlock(ctx); err != nil {
			return err
		}
	}
	return nil
}

// The second candidate leads once the first resigns, and an observer sees both.
func election(ctx context.Context, client *clientv3.Client) error {
	first, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	second, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	one, two := concurrency.NewElection(first, "/leader"), concurrency.NewElection(second, "/leader")
	if err := one.Campaign(ctx, "one"); err != nil {
		return err
	}
	seen := two.Observe(ctx)
	if leader := <-seen; string(leader.Kvs[0].Value) != "one" {
		return fmt.Errorf("leader is %s", leader.Kvs[0].Value)
	}
	elected := make(chan error, 1)
	go func() { elected <- two.Campaign(ctx, "two") }()
	if err := one.Proclaim(ctx, "still one"); err != nil {
		return err
	}
	if leader := <-seen; string(leader.Kvs[0].Value) != "still one" {
		return fmt.Errorf("leader is %s", leader.Kvs[0].Value)
	}
	if err := one.Resign(ctx); err != nil {
		return err
	}
	if err := <-elected; err != nil {
		return err
	}
	if leader := <-seen; string(leader.Kvs[0].Value) != "two" {
		return fmt.Errorf("leader is %s", leader.Kvs[0].Value)
	}
	if err := first.Close(); err != nil {
		return err
	}
	return second.Close()
}

// Money moves between accounts in transactions that are tried again until none disturbed another.
func memory(ctx context.Context, client *clientv3.Client) error {
	for account := range 3 {
		if _, err := client.Put(ctx, fmt.Sprintf("account/%d", account), "100"); err != nil {
			return err
		}
	}
	failures := make(chan error, 6)
	for worker := range 6 {
		go func() {
			from, to := fmt.Sprintf("account/%d", worker%3), fmt.Sprintf("account/%d", (worker+1)%3)
			_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
				less, _ := strconv.Atoi(stm.Get(from))
				more, _ := strconv.Atoi(stm.Get(to))
				stm.Put(from, strconv.Itoa(less-10))
				stm.Put(to, strconv.Itoa(more+10))
				return nil
			}, concurrency.WithAbortContext(ctx))
			failures <- err
		}()
	}
	for range 6 {
		if err := <-failures; err != nil {
			return err
		}
	}
	answer, err := client.Get(ctx, "account/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, item := range answer.Kvs {
		if string(item.Value) != "100" {
			return fmt.Errorf("%s holds %s", item.Key, item.Value)
		}
	}
	return nil
}

// A session whose keeper is gone ends, and its key with it.
func session(ctx context.Context, client *clientv3.Client) error {
	kept, err := concurrency.NewSession(client, concurrency.WithTTL(2))
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, "mine", "", clientv3.WithLease(kept.Lease())); err != nil {
		return err
	}
	gone := client.Watch(ctx, "mine", clientv3.WithFilterPut())
	kept.Orphan()
	event := <-gone
	if err := event.Err(); err != nil {
		return err
	}
	if event.Events[0].Type != clientv3.EventTypeDelete {
		return fmt.Errorf("told %v", event.Events[0])
	}
	left, err := client.TimeToLive(ctx, kept.Lease())
	if err != nil {
		return err
	}
	if left.TTL != -1 {
		return fmt.Errorf("the lease has %d s left", left.TTL)
	}
	return nil
}

// What was before, progress on request, and the error of a past that is compacted.
func watch(ctx context.Context, client *clientv3.Client) error {
	first, err := client.Put(ctx, "watched", "1")
	if err != nil {
		return err
	}
	told := client.Watch(ctx, "watched", clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV())
	last, err := client.Put(ctx, "watched", "2")
	if err != nil {
		return err
	}
	for events := 0; events < 2; {
		answer := <-told
		if err := answer.Err(); err != nil {
			return err
		}
		events += len(answer.Events)
		if events == 2 && string(answer.Events[len(answer.Events)-1].PrevKv.Value) != "1" {
			return fmt.Errorf("told %v", answer.Events)
		}
	}
	if err := client.RequestProgress(ctx); err != nil {
		return err
	}
	if answer := <-told; !answer.IsProgressNotify() || answer.Header.Revision < last.Header.Revision {
		return fmt.Errorf("expected progress, was told %v", answer)
	}
	if _, err := client.Compact(ctx, last.Header.Revision); err != nil {
		return err
	}
	late := <-client.Watch(ctx, "watched", clientv3.WithRev(first.Header.Revision))
	if late.CompactRevision != last.Header.Revision {
		return fmt.Errorf("expected the revision of the compaction, was told %v", late)
	}
	return nil
}
