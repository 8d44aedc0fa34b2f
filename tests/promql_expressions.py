"""What two PromQL engines are asked, of the samples of `promql_peer`: at which times is written there."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from tests.promql_peer import BEGIN_MS

INSTANTS_MS = (BEGIN_MS + 1500_321, BEGIN_MS + 2387_321)
RANGES_MS = (  # start, end, step
    (BEGIN_MS + 300_321, BEGIN_MS + 2100_321, 47_000),
    (BEGIN_MS - 400_679, BEGIN_MS + 3500_321, 173_000),
    (BEGIN_MS + 1500_321, BEGIN_MS + 1500_321, 60_000),
)

Picked = TypeVar("Picked")


def words(text: str) -> list[str]:
    """Apart by spaces."""
    return text.split()


def written(text: str) -> list[str]:
    """The expressions of one of the texts below."""
    return [one for line in text.strip().split("\n") for one in line.split(" ; ")]


# What is asked: expressions apart by " ; " or by the line's end.

SELECTORS = r"""
http_requests_total ; http_requests_total{} ; {__name__="load"} ; {__name__=~"load|up"}
{__name__=~"lo.d", instance!="a:1"} ; {__name__!~".*_.*", job="api"}
http_requests_total{job="api", method="GET", code=~"4..|500"} ; http_requests_total{code!~"2..", job!="web"}
http_requests_total{code=~""} ; http_requests_total{absent=""} ; http_requests_total{absent!="", job="api"}
http_requests_total{job=~".+", method=~"G.*", code="200"}
http_requests_total{job=~"a|api", instance=~"(a|b):1", code=~"[45]0[0-9]"}
http_requests_total{job=~"^api$", code=~"(?i)200"} ; page_views{path=""} ; page_views{path=~".*"}
page_views{path=~".+\\.html"} ; page_views{path="/日本"} ; page_views{note="a'b"} ; page_views{note='x=1,y=2'}
page_views{note=`$1 \1`} ; page_views{path="/q?x=\"1\""} ; page_views{note="\u00fcn\xc3\xaf\u20ac"} ; nothing
nothing{a="b"} ; solo ; name:with:colons{_under="x"} ; sum ; sum{by="on"} ; sum{by="on", group_left="offset"} ; life
life{phase=~"stale|returns"} ; sparse ; irregular ; odd ; http_requests_total offset 5m ; life offset 3m17s
life offset -4m ; http_requests_total{code="200"} offset 1h ; load offset 1m30s500ms ; load @ 1700001203
load @ 1700001100.5 ; load{job="web"} @ 1.7000011005e9 ; load @ start() ; load @ end() ; load @ 1700001203 offset 2m
load offset -2m @ 1700001203 ; load @ end() offset -1m ; life @ 0 ; load @ -5 ; sum(load @ end()) - sum(load @ start())
load - load @ 1700001203 ; load - (load @ 1700001203) * 2 ; load # a comment ; sum(load) by (job) # and another
( ( ( load ) ) ) ; {job="api", __name__="up"} ; up{instance="a:1",} ; {instance="a:1", job="web", code="404"}
"""

RANGES = r"""
load[1m] ; http_requests_total{code="200",method="GET"}[45s] ; life[3m] offset 7m ; life[20m] ; load[2m] @ 1700001203
load[90s] @ 1700001203 offset -1m ; irregular[4m] ; solo[1h] ; nothing[5m] ; odd[40s] ; sum(load)[5m:1m]
load[5m:30s] offset 1m ; load[3m:] @ 1700001203 ; rate(http_requests_total{code="500"}[2m])[5m:1m]
"""

LITERALS = r"""
1 ; -1 ; +1 ; --1 ; -(-(2)) ; 1.5e3 ; 1e-7 ; .5 ; 5. ; 0x1F ; 0xabcdef ; 010 ; 1e400 ; Inf ; -Inf ; NaN ; nan ; inf
+inf ; "a string" ; 'single \'quotes\' \t \x41 \u00e9 \101' ; `raw \n "string"` ; 1 + 2 * 3 ; 2 ^ 3 ^ 2 ; -2 ^ 2
2 ^ -1 ; (1 + 2) * 3 ; 10 - 4 - 3 ; 100 / 10 / 5 ; 7 % 3 ; -7 % 3 ; 7 % -3 ; 7.5 % 2 ; 5 % 0 ; 1 / 0 ; -1 / 0 ; 0 / 0
0 % 0 ; 1 % Inf ; Inf % 2 ; Inf - Inf ; 2 atan2 3 ; -2 atan2 0 ; 0 ^ 0 ; NaN ^ 0 ; 1 ^ NaN ; -8 ^ (1 / 3)
(-8) ^ (1 / 3) ; 10 ^ 400 ; 1 == bool 1 ; 1 != bool 1 ; NaN == bool NaN ; NaN != bool NaN ; 1 < bool 2 ; 2 <= bool 2
2 > bool 3 ; 3 >= bool NaN ; 1 + 2 == bool 3 ; time() ; time() * 2 - time() ; time() % 60 ; pi() ; vector(1)
vector(NaN) ; vector(time()) ; scalar(vector(3)) ; scalar(solo) ; scalar(load) ; scalar(nothing)
scalar(load{instance="a:1",job="api"}) * 2 ; -load ; -(load) ; +load ; - - load ; -solo ^ 2 ; -1 ^ 2 * solo
"""

OPERATORS = r"""
load + 1 ; 1 + load ; load * 2 ^ 2 ; load / 0 ; -load / 0 ; odd % 2 ; 2 % odd ; odd * 0 ; odd + odd ; odd - odd
odd / odd ; odd ^ 2 ; 2 ^ odd{kind!="huge"} ; (odd atan2 1) + 0 ; (angle atan2 angle) + 0 ; angle ^ 0.5 ; angle ^ -1
angle % 0.7 ; -0.7 % angle ; angle / 3 ; load > 40 ; load >= bool 40 ; load >= 40
workers >= on (job, instance) up * 5 ; 40 < load ; 40 <= bool load ; load != 40 ; odd == odd ; odd != odd
odd == bool odd ; odd > 1 ; odd <= 1 ; odd < bool Inf ; odd != bool NaN ; load == load ; load + load
load + on (job, instance) up ; load * ignoring (job) up{job="api"} ; load - on (instance) workers{job="web"}
load{job="api"} - on (instance) workers{job="web"} ; load{job="api"} + ignoring (job) workers{job="web"}
errors_total / ignoring (method) http_requests_total{method="GET"}
errors_total / on (job, instance, code) http_requests_total{method="GET"}
errors_total / on (job, instance, code) group_right http_requests_total
http_requests_total / on (job, instance, code) group_left errors_total
http_requests_total / ignoring (method) group_left errors_total
http_requests_total * on (job, instance) group_left (version) build_info
http_requests_total * on (job, instance) group_left (version, branch, missing) build_info
build_info * on (job, instance) group_right (version) http_requests_total{method="GET"}
load * on (instance, job) group_left (version) build_info > 40 ; memory_bytes / on (job) group_left limit_bytes
memory_bytes / on (job) group_left () limit_bytes ; limit_bytes - on (job) group_right memory_bytes
memory_bytes > on (job) group_left limit_bytes ; memory_bytes > bool on (job) group_left limit_bytes
limit_bytes < on (job) group_right memory_bytes ; limit_bytes <= bool on (job) group_right (job) memory_bytes
left_side * on (x) group_left (z) right_side ; right_side * on (x) group_right (y) left_side
left_side * on (x) right_side ; right_side * on (x) left_side ; left_side * right_side
left_side * on (x) group_left doubled ; left_side * on (x, y) group_left (z) doubled
left_side * on (x) group_left (y) right_side ; doubled * on (x) group_left (y) right_side
doubled - on (x) group_left doubled ; left_side + on () right_side ; left_side{x="1",y="1"} + on () right_side{x="2"}
left_side + on () group_left right_side{x="2"} ; left_side + ignoring (x, y, z) group_left right_side{x="2"}
left_side > on (x) group_left right_side ; left_side == on (x, y) left_side ; load and up == 1
load and on (job) limit_bytes ; load and on () vector(1) ; load and on () (vector(1) > 2)
load and ignoring (job) up{job="web"} ; load unless up == 0 ; load unless on (job) load{job="web"}
load unless nothing ; nothing unless load ; load{job="api"} or load ; load or workers
load{job="api"} or on (instance) workers ; load or ignoring (job) workers ; nothing or load ; nothing or nothing
up == 1 or vector(0) ; life or life offset 5m ; life and life offset 3m ; life unless life offset 10m
life + life offset 2m ; load or load offset 10m and up unless workers > 5 ; load > 40 and load < 45
load + on (job, instance) (workers * 2) - on (job, instance) up ; load > bool 40 == bool 1 ; 1 - load > 0
load * load / load % load ^ 2 ; up * on (job, instance) up * on (job, instance) up ; vector(1) + vector(2)
vector(1) == vector(1) ; solo + on () vector(1) ; solo + vector(1) ; solo * scalar(sum(up)) ; time() - timestamp(load)
load and on () (vector(time()) > 0) ; sum(load) + sum(workers) ; sum by (job) (load) / sum by (job) (workers)
sum by (job) (load) / on (job) group_right workers ; sum by (job) (load) * on (job) group_right (branch) build_info
avg without (instance) (load) > on (job) max by (job) (workers) ; {__name__=~"load|up"} * on (job, instance) workers
{__name__=~"load|up"} + 1 ; abs({__name__=~"relay_."}) ; {__name__=~"relay_."} * 2 ; rate({__name__=~"relay_."}[2m])
label_replace({__name__=~"relay_."}, "__name__", "r", "", "") ; max_over_time({__name__=~"relay_."}[2m:30s])
label_join({__name__=~"relay_."}, "__name__", "", "lap") ; workers > 3 < 7 ; workers ^ 2 ^ 0.5
"""

AGGREGATIONS = r"""
sum by () (load) ; sum without () (load) ; sum by (job, missing) (load) ; sum(load) by (job)
sum(load) without (instance, job) ; sum by (job,) (load) ; SUM BY (job) (load) ; Sum(load)
avg by (job) (http_requests_total) ; min by (kind) (odd) ; max by (kind) (odd) ; min(odd) ; max(odd)
max(odd{kind=~"nan|neg_inf"}) ; min(odd{kind=~"nan|inf"}) ; avg(odd{kind="huge"}) ; avg(odd{kind=~"inf|constant"})
avg(odd{kind=~"inf|neg_inf"}) ; sum(odd{kind=~"inf|neg_inf"}) ; sum(odd{kind=~"nan|constant"}) ; count(odd)
group(odd) ; group by (job) (load) ; count by (job, code) (http_requests_total)
count by (absent) (http_requests_total) ; count(nothing) ; sum(nothing) ; count(life)
count by (__name__) ({job="api"}) ; sum by (__name__) ({__name__=~"load|up|workers"}) ; count without (__name__) (load)
max without (instance) ({__name__=~"load|up"}) ; stddev by (group) (ranks) ; stdvar by (group) (ranks) ; stddev(load)
stdvar(memory_bytes) ; stddev(solo) ; quantile(0.5, ranks) ; quantile by (group) (0.9, ranks) ; quantile(0, ranks)
quantile(1, ranks) ; quantile(-0.1, ranks) ; quantile(1.1, ranks) ; quantile(NaN, ranks)
quantile(0.37, fleet_temperature) ; quantile by (zone) (0.95, fleet_temperature)
quantile(0.5, odd{kind=~"nan|constant|zero"}) ; quantile(0.5, solo) ; quantile(scalar(solo) / 10, ranks)
quantile(0.25, nothing) ; topk(3, fleet_temperature) ; topk(1, load) ; topk by (job) (2, load) ; topk(2, load) by (job)
topk without (instance, rack) (1, fleet_temperature) ; topk(0, load) ; topk(-1, load) ; topk(2.9, load)
topk(1000, load) ; topk(scalar(up{job="api",instance="a:1"}) + 1, load)
topk(3, odd{kind=~"nan|inf|constant|zero|third"}) ; bottomk(3, fleet_temperature)
bottomk by (zone) (2, fleet_temperature) ; bottomk(1, load) ; bottomk(3, odd{kind=~"nan|inf|constant|zero|third"})
bottomk(2, odd{kind=~"nan|constant"}) ; topk(1, odd{kind="nan"}) ; sum(topk(2, load)) ; topk(1, sum by (job) (load))
count_values("value", ranks) ; count_values by (group) ("value", ranks) ; count_values without (place) ("value", ranks)
count_values("version", build_info) ; count_values("kind", odd) ; count_values("value", odd)
count_values("job", workers) by (job) ; count_values("v", 1 / ranks) ; count_values("v", ranks * 1e20)
count(count by (code) (http_requests_total)) ; sum by (job) (count by (job, instance) (http_requests_total))
avg by (zone) (sum by (zone, rack) (fleet_temperature)) ; max(sum by (job) (rate(http_requests_total[5m]))) / 2
sum by (job) (rate(http_requests_total{code=~"5.."}[5m])) / sum by (job) (rate(http_requests_total[5m]))
sum(rate(http_requests_total[5m])) by (code) > 2 ; sum by (le) (rate(latency_seconds_bucket[5m]))
sum(load) without (job) or sum(up)
"""

FUNCTIONS = r"""
clamp_min(load offset 1m, 40) * 2 ; clamp_max(rate(http_requests_total[5m]), 1) ; clamp_max(load, pi() * 12)
histogram_count(rate(load[5m])) ; sum(histogram_sum(load)) ; histogram_sum(nothing) ; histogram_fraction(0, 1, load)
histogram_fraction(0, 1, nothing) ; histogram_fraction(0, 1, 1) ; deg(vector(pi())) ; load * pi() ; pi() * 2
round(load, 5) ; round(load, 0.1) ; round(angle) ; round(angle, 0.5) ; round(angle, -1) ; round(angle, 0)
round(odd{kind!="huge"}, 1e-3) ; round(vector(2.5)) ; clamp(load, 35, 45) ; clamp(load, 45, 35) ; clamp(load, NaN, 45)
clamp(load, -Inf, Inf) ; clamp_min(load, 42) ; clamp_max(load, 42) ; clamp_max(odd, 1) ; clamp_min(odd, NaN)
clamp(load, scalar(workers{instance="a:1",job="api"}), scalar(sum(load))) ; absent(nothing)
absent(nothing{job="x", code!="3", path=~"z", instance="i"}) ; absent(nothing{job="x", job="y", instance="i"})
absent(load) ; absent(sum(nothing)) ; absent(load{job="x"} > 1) ; absent(vector(1)) ; absent({job="x"})
absent({__name__="nothing", job="x"}) ; absent(nothing{job="x"} offset 5m) ; absent_over_time(nothing[5m])
absent_over_time(nothing{job="x", instance=~"y"}[5m]) ; absent_over_time(load[5m])
absent_over_time(life{phase="stale"}[1m]) ; absent_over_time(sum(nothing)[5m:1m])
absent_over_time(rate(nothing{job="x"}[5m])[5m:]) ; absent(life{phase="once"}) ; present_over_time(sparse[6m])
timestamp(load) ; timestamp(load offset 1m) ; timestamp(load @ 1700001203) ; timestamp(load + 0)
timestamp(timestamp(load)) ; timestamp(sum(load)) ; timestamp(vector(1)) ; timestamp(irregular)
time() - timestamp(sparse) ; scalar(sum(load)) ; vector(scalar(load)) ; sort(load) ; sort_desc(load)
sort(odd{kind=~"nan|inf|neg_inf|constant"}) ; sort_desc(odd{kind=~"nan|inf|neg_inf|constant"})
sort(sum by (job) (load)) ; sort_desc(fleet_temperature) ; minute()
hour() + day_of_week() + day_of_month() + day_of_year() + days_in_month() + month() + year() ; hour(vector(time()))
day_of_week(timestamp(load)) ; minute(load * 1e6) ; predict_linear(load[5m], 600) ; predict_linear(load[5m], -60)
predict_linear(load[5m] offset 2m, 600) ; predict_linear(flat_total[5m], 1e3)
predict_linear(memory_bytes[10m], scalar(solo)) ; predict_linear(sum(load)[10m:1m], 60)
predict_linear(odd{kind="inf"}[5m], 1) ; predict_linear(short_total[5m], 60) ; quantile_over_time(0.5, load[5m])
quantile_over_time(0, load[5m]) ; quantile_over_time(1, load[5m])
quantile_over_time(0.123, fleet_temperature{zone="a"}[10m]) ; quantile_over_time(-1, load[5m])
quantile_over_time(2, load[5m]) ; quantile_over_time(NaN, load[5m]) ; quantile_over_time(0.5, odd[5m])
quantile_over_time(scalar(solo) / 10, load[5m]) ; histogram_quantile(0.5, latency_seconds_bucket)
histogram_quantile(0.9, rate(latency_seconds_bucket[5m]))
histogram_quantile(0.9, sum by (le) (rate(latency_seconds_bucket[5m])))
histogram_quantile(0.99, sum by (le, job) (rate(latency_seconds_bucket[5m])))
histogram_quantile(0.5, increase(latency_seconds_bucket{job="api"}[10m]))
histogram_quantile(0, latency_seconds_bucket) ; histogram_quantile(1, latency_seconds_bucket)
histogram_quantile(-0.5, latency_seconds_bucket) ; histogram_quantile(1.5, latency_seconds_bucket)
histogram_quantile(NaN, latency_seconds_bucket) ; histogram_quantile(0.01, latency_seconds_bucket)
histogram_quantile(0.5, broken_bucket) ; histogram_quantile(0, broken_bucket) ; histogram_quantile(1, broken_bucket)
histogram_quantile(0.01, broken_bucket) ; histogram_quantile(0.2, broken_bucket)
histogram_quantile(0.75, broken_bucket) ; histogram_quantile(0.999, broken_bucket)
histogram_quantile(0.5, rate(broken_bucket[5m])) ; histogram_quantile(0.5, rate(broken_bucket{case!="nan"}[5m]) * 0)
histogram_quantile(0.5, load) ; histogram_quantile(0.5, nothing)
histogram_quantile(0.5, {__name__=~"latency_seconds_bucket|broken_bucket"})
histogram_quantile(scalar(solo) / 10, latency_seconds_bucket) ; histogram_count(load) ; histogram_sum(load)
histogram_count(nothing) ; max_over_time(histogram_quantile(0.5, latency_seconds_bucket)[5m:30s])
label_replace(load, "host", "$1", "instance", "(.*):.*")
label_replace(load, "host", "$1-${2}x", "instance", "(.*):(.*)")
label_replace(load, "host", "$1", "instance", "nomatch(.*)") ; label_replace(load, "job", "", "job", "api")
label_replace(load, "job", "same", "missing", "") ; label_replace(load{job="api"}, "instance", "one", "", "")
label_replace(load{instance="a:1"}, "job", "same", "job", ".*") ; label_replace(load, "new", "value", "job", "a.*")
label_replace(load, "new", "$0$$1", "job", "(?P<word>a.*)")
label_replace(load, "new", "${word}", "job", "(?P<word>a.*)") ; label_replace(load, "new", "$2", "job", "(a.*)")
label_replace(load, "__name__", "renamed", "", "") ; label_replace(load, "__name__", "", "", "")
label_replace(load, "instance", "$1", "instance", "(a|b|c):1")
label_replace(page_views, "path", "$1", "path", "/(.*)")
label_replace(page_views, "dir", "$1", "path", "/([^/]*)/?.*")
label_replace(rate(http_requests_total[5m]), "class", "${1}xx", "code", "(.)..")
sum by (class) (label_replace(rate(http_requests_total[5m]), "class", "${1}xx", "code", "(.).."))
label_replace(vector(1), "a", "b", "", "") ; label_replace(sum(load), "job", "all", "", "")
label_join(load, "target", "/", "job", "instance") ; label_join(load, "target", "", "job", "missing", "instance")
label_join(load, "job", ",", "missing") ; label_join(load, "target", ",")
label_join(load, "__name__", "_", "__name__", "job") ; label_join(page_views, "all", "|", "path", "note", "n")
label_join(load, "job", "-", "job", "instance") ; label_join(load{instance="a:1"}, "job", "-", "instance")
rate(http_requests_total[5m] offset 5m) ; rate(http_requests_total[5m] @ 1700001203)
rate(http_requests_total[5m] @ end()) ; rate(http_requests_total[5m] offset -2m) ; rate(http_requests_total[20s])
rate(http_requests_total[10s]) ; rate(http_requests_total[1h]) ; rate(http_requests_total[1m30s])
irate(fleet_temperature[1m]) ; increase(http_requests_total{code="500"}[3m]) > 10
sum by (job) (rate(http_requests_total[5m])) / ignoring (code) group_left sum by (job) (rate(errors_total[5m]))
sum by (job, code) (rate(errors_total[5m])) / on (job) group_left sum by (job) (rate(http_requests_total[5m]))
(sum(rate(latency_seconds_sum[5m])) / sum(rate(latency_seconds_count[5m]))) * 1000 ; avg_over_time(up[10m]) < 1
max_over_time(load[5m]) - min_over_time(load[5m]) ; max_over_time(sum by (job) (load)[10m:1m])
max_over_time(rate(http_requests_total{code="200"}[2m])[10m:1m])
avg_over_time(rate(http_requests_total{code="200"}[2m])[10m:30s]) ; max_over_time(sum_over_time(load[130s])[7m:1m])
max_over_time((load > 40)[5m:15s]) ; sum_over_time(max_over_time(load[130s:30s])[10m:1m])
min_over_time(load[10m:2m] offset 3m) ; min_over_time(load[10m:2m] @ 1700001203)
min_over_time((load @ 1700001203)[10m:2m]) ; min_over_time((load offset 3m)[10m:2m])
rate(sum(http_requests_total)[10m:30s]) ; rate(http_requests_total{code="200"}[10m:30s])
increase(http_requests_total[5m:45s]) ; delta(load[5m:20s] offset -1m) ; deriv(load[5m:15s])
count_over_time(load[5m:]) ; count_over_time(vector(1)[7m:1m]) ; count_over_time((up == 1)[5m:15s])
count_over_time(time()[5m:20s]) ; sum_over_time(time()[5m:1m]) ; last_over_time(life[4m:30s])
last_over_time((load > 40)[10m:1m]) ; avg_over_time(scalar(sum(load))[5m:1m])
quantile_over_time(0.9, rate(http_requests_total{code="200"}[2m])[10m:1m]) ; changes(up[20m])
resets(http_requests_total[30m]) ; stddev_over_time((load - load offset 1m)[10m:1m]) ; absent(load offset 20m) or load
topk(2, rate(http_requests_total[5m])) ; count(rate(http_requests_total[5m]) > 0.5) by (job)
abs(load - on (job) group_left avg by (job) (load))
(load - on (job) group_left avg by (job) (load)) / on (job) group_left stddev by (job) (load)
sum(up) / count(up) * 100 ; max by (job) (time() - timestamp(up)) ; load > on () group_left quantile(0.5, load)
sort_desc(sum by (code) (increase(http_requests_total[10m]))) ; deg(rad(angle)) ; sgn(odd) ; sgn(angle) * abs(angle)
exp(ln(angle)) ; sqrt(angle) ^ 2 ; floor(load) + (load - floor(load))
"""

# Mistakes, and what only looks like one.
FAULTS = r"""
load[1e30] ; load offset 1e30 ; load offset nan ; load offset Inf ; load[5m:1e30] ; load offset 1e18 ; load[5m:1e18]
load offset 99999999999999999999y10m ; load[99999999999y1m] ; 'x \101 \q' ; '\x41 \ '
label_join(load, "a", +"b", "job") ; 'a \q' ; "a \'" ; 'a \"' ; `x \ y` ; page_views{note=`$1 \`} ; +"a" ; 01e5
load[1231y] ; load[99999999999999999999y] ; - : ; 1 == bool (load @ 1700001203) ; load > bool (load @ end())
clamp({__name__=~"load|up"}, 2, 1) ; odd{kind=~"a\xff"} ; load + ; + load + ; (load ; load) ; load{ ; load{job=}
load{job="api" ; load{job=api} ; load{"job"="api",,} ; load{job=~"("} ; load{job=~"a**"} ; load{job="a\xff"} ; {}
{job=""} ; {job=~".*"} ; {job!="x"} ; load{__name__="up"} ; load[5m ; load[] ; load[5x] ; load[0s] ; load[-5m]
load[5m][5m] ; load[5m] + 1 ; load offset ; load offset x ; load offset 5m offset 5m ; load @ x ; load @ load
load @ 1 @ 2 ; load @ Inf ; load @ NaN ; (load + 1) offset 5m ; (load + 1) @ 1700001203 ; load[5m:0s] ; load[5m:1m][5m]
rate(load) ; rate(load[5m], 1) ; rate() ; rate(1) ; sum(load[5m]) ; sum() ; sum(1) ; sum("a") ; sum by job (load)
sum by (job load) ; sum by ("job") (load ; sum(load) by (job) by (code) ; topk(load) ; topk("a", load) ; topk(3)
topk(load, load) ; topk(1e300, load) ; quantile("a", load) ; count_values(1, load) ; count_values("a b", load) + "x"
abs("a") ; abs(1) ; abs(load, load) ; unknown(load) ; unknown_over_time(load[5m]) ; sqrt() ; vector(load) ; scalar(1)
time(1) ; round(load, load) ; clamp(load, 1) ; histogram_quantile(load, 0.5) ; label_replace(load, "a", "b", "c")
label_replace(load, "a", "b", "c", "(") ; label_replace(load, "", "b", "c", ".*") ; label_join(load, "")
label_join(load) ; 1 == 1 ; 1 > load bool ; load == bool ; 1 and 1 ; load and 1 ; 1 or load ; "a" + 1 ; "a" == "a"
-"a" ; load and on ; load + on (job) group_left load group_right load ; load + group_left load
load and group_left load ; load and on (job) group_left up ; load == on (job) group_left (job) up
load + ignoring (job) group_left (job) up ; load + on (job) up ; load + on (instance) up
load * on (job) group_left workers ; sum(load) by (job) + on () load ; 1 bool + 2 ; load bool + up ; load +* up
load = up ; load =~ "x" ; load ! up ; load & up ; "unclosed ; 'unclosed\' ; "bad \q escape" ; `unclosed ; 1.2.3 ; 0x
1e ; $ ; time ; by ; sum by ; offset 5m ; bool ; on ; {__name__="load", __name__="up"} ; rate(load[5m]) offset 5m
avg_over_time(load) ; load[5m] offset 5m[5m] ; max_over_time(load[5m:1m], 1) ; start() ; load @ start ; end() - start()
label_replace(http_requests_total, "code", "x", "code", ".*") ; label_join(http_requests_total, "code", "")
rate({__name__=~"errors_total|http_requests_total", code="404", method=~"|GET"}[5m]) ; abs({__name__=~"load|up"})
-{__name__=~"load|up"} ; count_over_time({job="api"}[5m]) ; {__name__=~"load|up"} * 2
sum_over_time({__name__=~"load|up"}[5m:1m]) ; sum without (job (load) ; load{job="api",job="web"} ; load{on="x"}
load{sum="x", by!="y"} ; sum by (sum, on) (load) ; load * on (bool) up ; avg ; count by (offset) (load) ; Infinity
-inf + load ; load[1h30m] ; load[1m1h] ; load[1d1h] ; load[1.5h] ; load[1y] ; load offset 1w
load offset 1y2w3d4h5m6s7ms ; (((((((((((((((((((((load)))))))))))))))))))))
"""

MATH = words(
    "abs ceil floor round exp ln log2 log10 sqrt sgn deg rad "
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh"
)
DATES = words("minute hour month year day_of_week day_of_month day_of_year days_in_month")
OVER_TIME = words(
    "rate increase delta irate idelta deriv changes resets avg_over_time min_over_time max_over_time sum_over_time "
    "count_over_time last_over_time present_over_time stddev_over_time stdvar_over_time absent_over_time"
)
DEVIATIONS = words("stddev stdvar")
AGGREGATES = words("sum avg min max count group")
WINDOWS = (
    "odd[5m]", "life[4m]", "sparse[12m]", "irregular[3m]", "load[97s]", "fleet_temperature[7m]",
    "http_requests_total[5m]", 'cpu_seconds_total{job="web"}[10m] offset 1m', "born_total[6m]", "gone_total[5m]",
    "short_total[4m]", "flat_total[5m]",
    "falling_total[5m]", "negative_total[5m]", "nan_total[5m]", "inf_total[5m]",
)  # fmt: skip
SUPPLIED = {"quantile_over_time": ("0.7, ", ""), "predict_linear": ("", ", 77")}
BORN_INSIDE = ("life[4m]", "sparse[12m]", "irregular[3m]", "born_total[6m]")  # version 3 extrapolates these otherwise
UNLIKE_BY_VERSION = {
    "stddev_over_time": '{kind!="huge"}', "stdvar_over_time": '{kind!="huge"}', "avg_over_time": '{kind!="cancel"}',
    "stddev": '{kind!~"nan|mixed|.*inf"}', "stdvar": '{kind!~"nan|mixed|.*inf"}',
    "ln": '{kind!="subnormal"}', "log2": '{kind!="subnormal"}', "log10": '{kind!="subnormal"}',
}  # fmt: skip
OTHERS = words(
    "absent clamp clamp_max clamp_min histogram_count histogram_fraction histogram_quantile histogram_sum label_join "
    "label_replace pi predict_linear quantile_over_time scalar sort sort_desc time timestamp vector"
)
OPERATOR_SIGNS = words(
    "+ - * / % ^ atan2 == != > < >= <= and or unless bool on ignoring group_left group_right offset @"
)
SETS = ("odd", "load", "ranks", "fleet_temperature", "rate(http_requests_total[5m])", "angle > 0", "life")
GROUPINGS = ("", "by (job)", "without (instance, place, phase)", "by (zone, group, kind)")


def families() -> Iterator[str]:
    """Every function of a kind, over all that the functions of this kind are given."""
    for function, of in itertools.product(MATH, ("odd", "angle", "load{job='api'}")):
        unlike = UNLIKE_BY_VERSION.get(function, "")
        yield f"{function}({of}{unlike if of == 'odd' else ''})"
    for function, of in itertools.product(DATES, ("", "moment")):
        yield f"{function}({of})"
    for function, window in itertools.product(OVER_TIME, WINDOWS):
        if function in ("rate", "increase") and window in BORN_INSIDE:
            continue
        yield f"{function}({window.replace('odd[', 'odd' + UNLIKE_BY_VERSION.get(function, '') + '[')})"
    for aggregate, grouping, of in itertools.product([*AGGREGATES, *DEVIATIONS], GROUPINGS, SETS):
        yield f"{aggregate} {grouping} ({of}{UNLIKE_BY_VERSION.get(aggregate, '') if of == 'odd' else ''})"


class Generator:
    """Draws expressions. `targets` give at most one series a job and instance, `jobs` one a job: most joins succeed.

    Nothing that makes a step of a hair's breadth stands above sums, whose last digit differs between versions, and no
    deviations, of which the rounding is most of what is left when all values are nearly the same. A range of a subquery
    is no multiple of its step, as one of them may stand in another.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def expression(self) -> str:
        """Any."""
        return self._random.choice((self.targets, self.targets, self.jobs, self._many))(3)

    def targets(self, depth: int) -> str:
        """One series a job and instance."""
        if depth == 0:
            return self._selector("load", "memory_bytes", "workers", "up", "build_info", "cpu_seconds_total")
        return self._one_of(
            depth, self._mapped, self._windowed, self._joined, self._with_scalar, self._set, self._grouped
        )

    def jobs(self, depth: int) -> str:
        """One series a job."""
        if depth == 0:
            return "limit_bytes"
        below = self._pick(self.targets, self._many)(depth - 1)
        plain = f"{self._pick(*AGGREGATES)} by (job) ({below})"
        return self._pick(plain, plain, f"{plain} {self._arithmetic()} on (job) {self.jobs(depth - 1)}")

    def _many(self, depth: int) -> str:
        counter = self._selector("http_requests_total", "errors_total", "latency_seconds_bucket")
        function = self._pick("rate", "increase", "irate", "delta", "changes")
        window = f"{function}({counter}[{self._span()}]{self._modifier()})"
        joined = f"{window} {self._arithmetic()} on (job, instance) group_left () ({self.targets(max(depth - 2, 0))})"
        untied = (
            f"{self._pick('rate', 'increase', 'irate', 'delta')}(http_requests_total[{self._span()}]{self._modifier()})"
        )
        extreme = f"{self._pick('topk', 'bottomk')} by (job) ({self._random.randint(1, 5)}, {untied})"
        quantile = f"histogram_quantile(0.{self._random.randint(1, 99)}, rate(latency_seconds_bucket[{self._span()}]))"
        return self._pick(window, joined, extreme, quantile, f"{window} > {self._random.random():.3f}")

    def _mapped(self, depth: int) -> str:
        function = self._pick("abs", "sqrt", "sgn", "deg", "exp", "timestamp", "-", "")
        return f"{function}({self.targets(depth - 1)})"

    def _windowed(self, depth: int) -> str:
        function = self._pick(*OVER_TIME[:-1], *SUPPLIED)
        plain = self._selector("load", "memory_bytes", "workers", "up", "cpu_seconds_total", modified=False)
        range_ = f"{plain}[{self._span()}]"
        if depth > 1 and function not in ("rate", "increase", "changes", "resets") and self._random.random() < 0.5:
            range_ = self._subquery(depth)  # not of rates: it may begin anywhere, see BORN_INSIDE
        range_ += self._pick("", " offset 1m") if function == "predict_linear" else self._modifier()
        before, after = SUPPLIED.get(function, ("", ""))
        return f"{function}({before}{range_}{after})"

    def _subquery(self, depth: int) -> str:
        return f"({self.targets(depth - 1)})[{self._pick('317s', '487s', '667s')}:{self._pick('30s', '1m', '45s', '')}]"

    def _joined(self, depth: int) -> str:
        left, how = self.targets(depth - 1), self._pick("one", "many")
        operator = self._pick(self._arithmetic(), self._arithmetic(), ">", "<=", "> bool", "<= bool")
        if how == "one":
            return f"({left}) {operator} on (job, instance) ({self.targets(depth - 1)})"
        return f"({left}) {operator} on (job) group_left () ({self.jobs(depth - 1)})"

    def _with_scalar(self, depth: int) -> str:
        number = self._pick("2", "0.5", "-3", "time()", "scalar(solo)", "11")
        return f"({self.targets(depth - 1)}) {self._arithmetic()} {number}"

    def _set(self, depth: int) -> str:
        operator, right = self._pick("and", "unless", "or"), self.targets(depth - 1)
        if operator == "unless":  # or most of what comes of it would be nothing
            right = f'({right}) and on (job, instance) up{{instance="a:1"}}'
        return f"({self.targets(depth - 1)}) {operator} on (job, instance) ({right})"

    def _grouped(self, depth: int) -> str:
        return f"{self._pick(*AGGREGATES)} by (job, instance) ({self._many(depth - 1)})"

    def _selector(self, *metrics: str, modified: bool = True) -> str:
        matchers = self._pick("", "", '{job="api"}', '{instance!="b:1"}', '{instance=~"a.*|c.*"}', '{job=~"a.+|web"}')
        plain = self._pick(*metrics) + matchers
        return plain + self._modifier() if modified and "total" not in plain and "bucket" not in plain else plain

    def _modifier(self) -> str:
        return self._pick(
            "", "", "", "", " offset 1m", " offset -90s", " @ 1700001203", " @ end()", " @ start() offset 2m"
        )

    def _span(self) -> str:
        return self._pick("1m", "2m", "5m", "5m", "13m")

    def _arithmetic(self) -> str:
        return self._pick("+", "-", "*", "/")

    def _one_of(self, depth: int, *makers: Callable[[int], str]) -> str:
        return self._random.choice(makers)(depth)

    def _pick(self, *choices: Picked) -> Picked:
        return self._random.choice(choices)


def generated(count: int = 400, seed: int = 2023) -> list[str]:
    """So many different ones."""
    generator, found = Generator(seed), dict[str, None]()
    while len(found) < count:
        found[generator.expression()] = None
    return list(found)


GROUPS: Mapping[str, Sequence[str]] = {
    "selectors": written(SELECTORS), "ranges": written(RANGES), "literals": written(LITERALS),
    "operators": written(OPERATORS), "aggregations": written(AGGREGATIONS), "functions": written(FUNCTIONS),
    "faults": written(FAULTS), "families": list(families()), "generated": generated(),
}  # fmt: skip
