package story

import (
	"fmt"
	"strings"

	"github.com/imgsrv/imgsrv/events"
)

func tellWithdrawal(w *events.Withdrawal) string {
	if w == nil {
		return "withdrawn"
	}
	return strings.TrimSuffix("withdrawn: "+w.Reason, ": ")
}

func tellPolicy(p *events.Policy) string {
	if p == nil {
		return "the policy ended"
	}
	var rules, formats []string
	for _, f := range p.Formats {
		if f.Required {
			formats = append(formats, f.Format)
		} else {
			formats = append(formats, f.Format+" if possible")
		}
	}
	if len(formats) > 0 {
		rules = append(rules, "make "+strings.Join(formats, ", "))
	}
	if p.Deltas != nil {
		rules = append(rules, fmt.Sprintf("deltas against %d versions", *p.Deltas))
	}
	if n := p.Retention.KeepLast; n > 0 {
		rules = append(rules, fmt.Sprintf("keep the last %d", n))
	}
	if n := p.Retention.KeepDays; n > 0 {
		rules = append(rules, fmt.Sprintf("keep %d days", n))
	}
	return "the policy is: " + orElse(strings.Join(rules, "; "), "keep all")
}
