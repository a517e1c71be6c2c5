{{/*
The page that shows runs (`lattice-rdzv dashboard`). It is one Deployment that reads the service over its endpoints, in the same way with every engine
and with an external etcd.
*/}}

{{- define "lattice.dashboardName" -}}lattice-rdzv-dashboard{{- end -}}
{{- define "lattice.dashboardMetricsService" -}}lattice-rdzv-dashboard-metrics{{- end -}}

{{/* "true" if the page runs. */}}
{{- define "lattice.dashboard" -}}{{- if .Values.dashboard.enabled -}}true{{- end -}}{{- end -}}

{{- define "lattice.dashboardSelector" -}}
app: {{ include "lattice.dashboardName" . }}
{{- end -}}

{{- define "lattice.dashboardImage" -}}
{{- default (include "lattice.agentImage" .) .Values.dashboard.image -}}
{{- end -}}

{{/* The tenant whose runs the page shows. Without a setting, the command shows the tenant `default`. */}}
{{- define "lattice.dashboardTenant" -}}
{{- $own := include "lattice.agentNamespaces" . | fromYamlArray | first -}}
{{- default (default "default" $own.tenant) .Values.dashboard.tenant -}}
{{- end -}}

{{/* Whether the chart creates a user of etcd that can only read. The embedded server has one user and no roles. */}}
{{- define "lattice.dashboardReader" -}}
{{- if and .Values.dashboard.enabled .Values.auth.enabled (not (include "lattice.embedded" .)) -}}true{{- end -}}
{{- end -}}

{{/* The user of the service for the page, if it needs one. */}}
{{- define "lattice.dashboardUser" -}}
{{- if include "lattice.dashboardReader" . -}}{{- .Values.dashboard.etcd.user -}}
{{- else -}}{{- (include "lattice.agentNamespaces" . | fromYamlArray | first).user -}}
{{- end -}}
{{- end -}}

{{/* The users that the container `auth` maintains, as JSON: those of the values, and the page's. */}}
{{- define "lattice.etcdUsers" -}}
{{- $users := .Values.auth.users -}}
{{- if include "lattice.dashboardReader" . -}}
{{- $users = append $users (dict "name" .Values.dashboard.etcd.user "tenant" (include "lattice.dashboardTenant" .) "readOnly" true) -}}
{{- end -}}
{{- toJson $users -}}
{{- end -}}

{{/* The Secret with the page's certificate: yours, or that of the Certificate that this chart creates. */}}
{{- define "lattice.dashboardTlsSecret" -}}
{{- .Values.dashboard.tls.existingSecret | default (printf "%s-tls" (include "lattice.dashboardName" .)) -}}
{{- end -}}

{{- define "lattice.dashboardEtcdSecret" -}}
{{- .Values.dashboard.etcd.existingSecret | default (include "lattice.tlsSecret" (dict "root" . "side" "client")) -}}
{{- end -}}

{{/* The host names under which browsers reach the page, as a YAML list. */}}
{{- define "lattice.dashboardHosts" -}}
{{- $name := include "lattice.dashboardName" . -}}
{{- $short := printf "%s.%s" $name .Release.Namespace -}}
{{- concat (list $name $short (printf "%s.svc" $short) (include "lattice.host" (dict "root" . "service" $name))) (default list .Values.dashboard.hosts) | uniq | toYaml -}}
{{- end -}}

{{- define "lattice.dashboardEnvironment" -}}
- name: LATTICE_RDZV_ENDPOINTS
  value: {{ include "lattice.endpoints" . | quote }}
- name: LATTICE_RDZV_TENANT
  value: {{ include "lattice.dashboardTenant" . | quote }}
{{- if .Values.tls.client.enabled }}
- name: LATTICE_RDZV_CACERT
  value: /etc/lattice-rdzv/tls/client/ca.crt
{{- if .Values.tls.client.requireClientCert }}
- name: LATTICE_RDZV_CERT
  value: /etc/lattice-rdzv/tls/client/tls.crt
- name: LATTICE_RDZV_KEY
  value: /etc/lattice-rdzv/tls/client/tls.key
{{- end }}
{{- end }}
{{- with (include "lattice.dashboardUser" .) }}
- name: LATTICE_RDZV_USER
  value: {{ . | quote }}
- name: LATTICE_RDZV_PASSWORD_FILE
  value: {{ printf "/etc/lattice-rdzv/auth/%s" . | quote }}
{{- end }}
{{- end -}}

{{/* The refusals of the page, with every engine and with an external etcd. */}}
{{- define "lattice.dashboardRefusals" -}}
{{- $page := .Values.dashboard -}}
{{- $tls := $page.tls -}}
{{- $issuer := gt (len (default dict $tls.issuerRef)) 0 -}}
{{- $external := include "lattice.external" . | eq "true" -}}
{{- $users := list -}}
{{- range .Values.auth.users -}}{{- $users = append $users .name -}}{{- end -}}
dashboard-off:
  when: {{ and (not $page.enabled) (or $issuer (ne $tls.existingSecret "") (ne $page.login.existingSecret "")) }}
  text: >-
    `dashboard.tls` or `dashboard.login.existingSecret` is set, but the page is off; add --set dashboard.enabled=true, or remove these values
dashboard-without-image:
  when: {{ and $page.enabled (eq (include "lattice.dashboardImage" .) "") }}
  text: >-
    `dashboard.enabled` needs an image that contains the package `lattice-rdzv` (`make image` builds one), but `dashboard.image` and `agents.image` are
    empty. Example: --set dashboard.image=registry.example.com/lattice-rdzv:{{ .Chart.Version }}
dashboard-without-tls:
  when: {{ and $page.enabled (eq $tls.existingSecret "") (not $issuer) }}
  text: >-
    `dashboard.enabled` needs TLS, because the page asks for a password: name a Secret with `tls.crt` and `tls.key` in the namespace
    `{{ .Release.Namespace }}`. Example: --set dashboard.tls.existingSecret=rdzv-dashboard-tls. With cert-manager, set `dashboard.tls.issuerRef` instead
dashboard-secret-and-issuer:
  when: {{ and (ne $tls.existingSecret "") $issuer }}
  text: >-
    `dashboard.tls.existingSecret` and `dashboard.tls.issuerRef` exclude each other; remove one of them
dashboard-without-login:
  when: {{ and $page.enabled (eq $page.login.existingSecret "") }}
  text: >-
    `dashboard.enabled` needs a login: name a Secret in the namespace `{{ .Release.Namespace }}` with the password under the key `{{ $page.login.user }}`.
    Example: --set dashboard.login.existingSecret=rdzv-dashboard-login
dashboard-ports:
  when: {{ and $page.enabled (eq (int $page.port) (int $page.metricsPort)) }}
  text: >-
    `dashboard.port` and `dashboard.metricsPort` must differ. Both are: {{ int $page.port }}
dashboard-user-of-agents:
  when: {{ and (include "lattice.dashboardReader" . | eq "true") (has $page.etcd.user $users) }}
  text: >-
    `dashboard.etcd.user` must be another user than those of `auth.users`, because it can only read; choose another name. It is:
    `{{ $page.etcd.user }}`
{{ include "lattice.serviceRefusals" (dict "key" "dashboard.service" "service" $page.service) }}
dashboard-policy-without-clients:
  when: {{ and $page.enabled .Values.networkPolicy.enabled (ne $page.service.type "ClusterIP") (not $page.networkPolicy.from) }}
  text: >-
    `networkPolicy.enabled` blocks all browsers from outside of the cluster, but `dashboard.service.type` is `{{ $page.service.type }}`; set
    `dashboard.networkPolicy.from`. Example: --set dashboard.networkPolicy.from[0].ipBlock.cidr=10.0.0.0/8
dashboard-external-without-password:
  when: {{ and $page.enabled $external (ne .Values.external.user "") (eq .Values.external.existingSecret "") }}
  text: >-
    with `external.user` the page needs a Secret in the namespace `{{ .Release.Namespace }}` with the password under the key `{{ .Values.external.user }}`;
    set `external.existingSecret`, or remove `dashboard.enabled`
dashboard-external-without-certificate:
  when: {{ and $page.enabled $external .Values.tls.client.enabled (eq $page.etcd.existingSecret "") (eq .Values.tls.client.existingSecret "") }}
  text: >-
    with `tls.client.enabled` the page needs a Secret with `ca.crt`, and with mTLS `tls.crt` and `tls.key`, in the namespace `{{ .Release.Namespace }}`;
    set `dashboard.etcd.existingSecret`, or remove `dashboard.enabled`
{{- end -}}
